"""Memory-based Jitter (MBJ) for long-tailed recognition."""

__version__ = "0.1.0"
