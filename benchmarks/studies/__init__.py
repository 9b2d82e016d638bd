"""Experiments of one page each."""
