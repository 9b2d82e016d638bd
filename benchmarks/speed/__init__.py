"""What the diagnostics and the memory loss cost; each file is a command."""
