"""One directory per method; bct.method.load_method imports methods/<Name>/train.py by its name."""
