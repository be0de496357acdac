"""What short tasks are made of: the form of a task, the languages, the words and the countries."""

import re
from collections.abc import Iterable
from pathlib import Path

import reasoning_gym
from babel import Locale
from babel.numbers import get_territory_currencies

__all__ = ["LANGUAGES", "Pair", "Task", "territories", "words", "yes"]

Pair = tuple[str, str]
"""An input and the response to it."""
Task = tuple[str, tuple[str, ...], Iterable[Pair]]
"""A name, ways to say what is wanted, and inputs with responses."""

LANGUAGES = {
    "es": "Spanish", "de": "German", "it": "Italian", "pt": "Portuguese", "nl": "Dutch",
    "sv": "Swedish", "pl": "Polish", "fi": "Finnish", "hu": "Hungarian", "ro": "Romanian",
}  # fmt: skip
"""Those that tasks are about, by their codes."""


def words() -> list[str]:
    """Ordinary English words of three to ten letters, from a story that reasoning-gym brings along."""
    story = (Path(reasoning_gym.__file__).parent / "data/in_the_year_2889.txt").read_text(encoding="utf-8")
    return sorted(set(re.findall(r"\b[a-z]{3,10}\b", story)))


def territories(language: str) -> dict[str, str]:
    """Names of the countries by their codes, the short ones."""
    names = Locale(language).territories.items()
    known = {code: name for code, name in names if len(code) == 2 and code.isalpha() and get_territory_currencies(code)}
    return {code: name for code, name in known.items() if len(name) < 24}


def yes(is_so: bool) -> str:
    """Return yes or no."""
    return "yes" if is_so else "no"
