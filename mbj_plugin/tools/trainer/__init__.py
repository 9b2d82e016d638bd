"""`mbj-train-timm`: a trainer for those who have a data folder and none of their own. `train` is the command."""
