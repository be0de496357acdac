"""What the commands print on standard output: lines for people, JSON for scripts."""

import json
import sys
from typing import Any

__all__ = ["say", "say_json"]


def say(line: str) -> None:
    """Print ``line``; a name of a file in it may hold bytes that are no text."""
    sys.stdout.write(f"{line.encode(errors='replace').decode()}\n")


def say_json(value: Any) -> None:
    """Print ``value`` as JSON."""
    say(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
