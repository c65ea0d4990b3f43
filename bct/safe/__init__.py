"""Reading files that may be hostile: pickled lists, pickled dicts, tensors."""
