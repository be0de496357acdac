"""Models and adapters on a model hub: their cards, and how they get there."""
