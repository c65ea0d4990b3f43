"""Maps between two embedding spaces."""
