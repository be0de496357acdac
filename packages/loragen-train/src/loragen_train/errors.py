"""The one exception base of the package: every message is a sentence with the way out."""

__all__ = ["LoragenTrainError"]


class LoragenTrainError(Exception):
    """A user's input or environment prevents the work; the message says what, where, and the way out."""
