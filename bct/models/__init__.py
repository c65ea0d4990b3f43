"""Trained networks, whoever trained them: loading, widths, embedding."""
