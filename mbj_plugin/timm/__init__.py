"""MBJ in timm."""
