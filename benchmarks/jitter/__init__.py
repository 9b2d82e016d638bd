"""Section 3.1 of the paper as an experiment: does more data jitter more? `tools/analyze_jitter.py` is the command."""
