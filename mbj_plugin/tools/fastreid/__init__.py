"""The commands for fast-reid: training, a demo without a data set, and the export of a finished run."""

import mbj_plugin.fastreid  # noqa: F401  fast-reid cannot be imported before it
