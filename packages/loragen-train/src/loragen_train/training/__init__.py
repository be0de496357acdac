"""The training of a generator."""
