"""How adapters come to be, and how they are read."""
