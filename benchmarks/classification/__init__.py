"""The paper's classification tables, cell by cell: settings -> data -> training -> runner -> report.

A cell is data set x imbalance ratio x protocol x method x seed; ``tools/reproduce.py`` is the command.
"""
