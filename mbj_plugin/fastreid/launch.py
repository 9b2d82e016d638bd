"""`python -m mbj_plugin.fastreid.launch tools/train_net.py --config-file ...`: an unmodified fast-reid script, with us.

It is `fastreid_today.launch`, which imports mbj_plugin.fastreid as soon as the script has imported its fast-reid.
"""

import sys

from fastreid_today.launch import launch

if __name__ == "__main__":
    # Empty so far: on the way to this file nothing of fast-reid may be imported, see there.
    sys.modules.pop("mbj_plugin.fastreid")
    launch(globals(), plugin="mbj_plugin.fastreid")
