"""What a training leaves on disk, and how it is shown."""
