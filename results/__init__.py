"""What generated adapters are worth on tasks never seen: the run that measures it, and what it found."""
