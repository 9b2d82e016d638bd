"""What measures the plugin, from a clone: the cells of the tables, the jitter study, the costs. Not installed."""
