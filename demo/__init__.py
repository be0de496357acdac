"""The demo: the whole way on real parts, in a few minutes."""
