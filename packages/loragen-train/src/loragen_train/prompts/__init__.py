"""What the generator sees of a task: samples from anywhere, combined to prompts."""
