"""Retrieval: cells of (data set, <H, S>, method, seed), trained by fast-reid's own DefaultTrainer, and their report."""

import mbj_plugin.fastreid  # noqa: F401  (before anything of fast-reid)
