"""bct: the shared library of backward-compatible training. Flat modules, plain functions."""
