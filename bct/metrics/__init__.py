"""Pure functions on scores, ranks and embeddings; nothing here knows a file or a model."""
