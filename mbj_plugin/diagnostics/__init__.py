"""While training: what the memory holds, how the model jitters, which classes gain. Knows no host."""
