"""What sentences and lists of short tasks are filled with, and how a task is drawn from a template."""

import random
from collections.abc import Callable, Iterable

from results.short_tasks.vocabulary import Pair, Task

__all__ = [
    "CITIES", "COLORS", "KINDS", "NAMES", "THINGS", "WEEKDAYS", "Template", "clock", "drawn", "numbers", "true",
    "turned",
]  # fmt: skip

Template = tuple[str, tuple[str, ...], Callable[[random.Random], Pair]]
"""A name, ways to say what is wanted, and what draws an input with its response."""

NAMES = [
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jonas", "Kira", "Leo", "Maria",
    "Noah", "Olga", "Paul", "Rosa", "Samuel", "Tara", "Victor", "Wanda", "Zoe",
]  # fmt: skip
CITIES = [
    "Athens", "Berlin", "Chicago", "Dublin", "Geneva", "Hamburg", "Istanbul", "Jakarta", "Kyoto", "Lisbon", "Madrid",
    "Nairobi", "Oslo", "Paris", "Quito", "Rome", "Seattle", "Tokyo", "Vienna", "Warsaw",
]  # fmt: skip
COLORS = ["red", "blue", "green", "yellow", "purple", "gray", "brown", "black", "white", "pink"]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
THINGS = [
    "lamp", "chair", "book", "bag", "cup", "coat", "clock", "bottle", "basket", "hat", "pencil", "blanket", "mirror",
    "ladder", "kettle", "jar", "table", "drum", "tent", "carpet",
]  # fmt: skip
"""Nouns that start with a consonant and take an s in the plural."""
KINDS = {
    "animal": ["dog", "horse", "tiger", "eagle", "shark", "frog", "camel", "goat", "rabbit", "spider", "penguin"],
    "fruit": ["apple", "banana", "cherry", "grape", "lemon", "mango", "peach", "pear", "plum", "melon", "strawberry"],
    "vehicle": ["car", "bus", "truck", "bicycle", "tram", "ferry", "helicopter", "tractor", "scooter", "van", "train"],
    "instrument": ["piano", "violin", "guitar", "flute", "trumpet", "cello", "harp", "banjo", "clarinet", "trombone"],
    "profession": ["teacher", "baker", "nurse", "pilot", "lawyer", "plumber", "farmer", "dentist", "engineer", "chef"],
    "garment": ["shirt", "sock", "glove", "jacket", "skirt", "sweater", "dress", "trousers", "blouse", "jeans"],
}
"""Things of kinds that nobody confuses."""


def drawn(draw: random.Random, templates: Iterable[Template], count: int = 150) -> Iterable[Task]:
    """Yield a task of so many drawn inputs for every template."""
    for name, instructions, make in templates:
        yield name, instructions, [make(draw) for _ in range(count)]


def numbers(draw: random.Random, count: int, most: int = 99) -> list[int]:
    """Return so many different numbers from one on."""
    return draw.sample(range(1, most + 1), count)


def clock(minutes: int) -> str:
    """Return the time so many minutes after midnight."""
    return f"{minutes // 60 % 24}:{minutes % 60:02}"


def true(is_so: bool) -> str:
    """Return true or false."""
    return "true" if is_so else "false"


def turned(pair: Pair) -> Pair:
    """Return what was wanted as the input, and the other way round."""
    given, wanted = pair
    return wanted, given
