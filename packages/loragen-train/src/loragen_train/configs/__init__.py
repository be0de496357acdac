"""The configurations of the commands, as dataclasses that need no torch, so that ``--help`` is fast."""
