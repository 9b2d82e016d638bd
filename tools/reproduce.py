"""Run cells of the paper's classification tables, and make the results page from them.

    python tools/reproduce.py --data FOLDER --group cpu_main
    python tools/reproduce.py --data FOLDER --protocol cpu --methods ce mbj --seeds 0 1 2
    python tools/reproduce.py --report

A finished cell is never run again; an interrupted one goes on where it was saved.
"""

from mbj_plugin.timm.reproduce.command import main

if __name__ == "__main__":
    main()
