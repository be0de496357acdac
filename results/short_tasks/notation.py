"""Short tasks of runs of letters, brackets, colors, squares, and ways to write numbers and units."""

import random
from collections.abc import Iterable
from itertools import groupby

from results.short_tasks.templates import Template, drawn, numbers, turned
from results.short_tasks.vocabulary import Pair, Task, yes

__all__ = ["of_notation"]

_PAIRS = {"A": "T", "T": "A", "C": "G", "G": "C"}
_BRACKETS = {"(": ")", "[": "]"}


def of_notation(draw: random.Random) -> Iterable[Task]:
    yield from drawn(draw, [*_of_runs(), *_of_notation()])


def _of_runs() -> Iterable[Template]:
    yield (
        "runs_shorten",
        ("Write each run of letters as the letter and its length.", "As aaab is a3b1, shorten {}"),
        _runs,
    )
    yield (
        "runs_expand",
        ("Write each letter as often as the number after it says.", "As a3b1 is aaab, expand {}"),
        lambda draw: turned(_runs(draw)),
    )
    yield "dna_partner", ("Write the partner strand: A with T, C with G.", "{}\nSwap A and T, and C and G."), _dna
    yield (
        "brackets_match",
        ("Is every bracket closed in the right order? Say yes or no.", "{} Do these brackets match, yes or no?"),
        _matched,
    )


def _runs(draw: random.Random) -> Pair:
    letters = draw.sample("abcdefgh", 3)
    text = "".join(letter * draw.randint(1, 5) for letter in letters)
    return text, "".join(f"{letter}{len([*run])}" for letter, run in groupby(text))


def _dna(draw: random.Random) -> Pair:
    strand = draw.choices("ATCG", k=draw.randint(5, 9))
    return "".join(strand), "".join(_PAIRS[base] for base in strand)


def _matched(draw: random.Random) -> Pair:
    text = ""
    for _ in range(draw.randint(2, 4)):
        opening = draw.choice([*_BRACKETS])
        both = opening + _BRACKETS[opening]
        text = draw.choice([f"{opening}{text}{_BRACKETS[opening]}", text + both])
    if draw.random() < 0.5:
        place = draw.randrange(len(text))
        text = text[:place] + draw.choice("()[]") + text[place + 1 :]
    return text, yes(_is_balanced(text))


def _is_balanced(text: str) -> bool:
    waiting: list[str] = []
    for sign in text:
        if sign in _BRACKETS:
            waiting.append(_BRACKETS[sign])
        elif not waiting or waiting.pop() != sign:
            return False
    return not waiting


def _of_notation() -> Iterable[Template]:
    yield (
        "color_hex",
        ("Write the color as a hex code in small letters.", "rgb(0, 16, 255) is #0010ff, and {} is"),
        _hex,
    )
    yield (
        "chess_square",
        ("Which square do you get to from there? Answer like e4.", "{} On which square of the chess board is that?"),
        _square,
    )
    yield (
        "number_from_binary",
        ("Write the binary number in decimal.", "{} in binary is which decimal number?"),
        _binary,
    )
    yield "number_octal", ("Write the number in octal.", "{} in the octal system:"), _octal
    yield (
        "number_thousands",
        ("Put commas between the thousands.", "As 12345 is 12,345, write {}"),
        _thousands,
    )
    yield (
        "number_expanded",
        ("Write the number as hundreds + tens + ones.", "As 345 is 300 + 40 + 5, write {}"),
        _expanded,
    )
    yield "units_mixed", ("Write it in meters only, like 1250 m.", "{}\nIn meters, like 1250 m:"), _meters
    yield "units_minutes", ("How many minutes is it? Number only.", "{} in minutes, as a number:"), _minutes


def _hex(draw: random.Random) -> Pair:
    red, green, blue = (draw.choice([0, 16, 32, 64, 128, 160, 200, 255]) for _ in range(3))
    return f"rgb({red}, {green}, {blue})", f"#{red:02x}{green:02x}{blue:02x}"


def _square(draw: random.Random) -> Pair:
    column, row, steps = draw.randrange(1, 7), draw.randint(2, 7), draw.choice(["up", "down", "left", "right"])
    across, up = {"up": (0, 1), "down": (0, -1), "left": (-1, 0), "right": (1, 0)}[steps]
    word = {
        "up": "one row up",
        "down": "one row down",
        "left": "one column to the left",
        "right": "one column to the right",
    }
    return (
        f"From {'abcdefgh'[column]}{row} go {word[steps]}, seen by white.",
        f"{'abcdefgh'[column + across]}{row + up}",
    )


def _binary(draw: random.Random) -> Pair:
    number = draw.randint(2, 255)
    return f"{number:b}", str(number)


def _octal(draw: random.Random) -> Pair:
    number = draw.randint(9, 600)
    return str(number), f"{number:o}"


def _thousands(draw: random.Random) -> Pair:
    number = draw.choice([draw.randint(1_000, 99_999), draw.randint(100_000, 9_999_999)])
    return str(number), f"{number:,}"


def _expanded(draw: random.Random) -> Pair:
    hundreds, tens, ones = numbers(draw, 3, 9)
    return f"{hundreds}{tens}{ones}", f"{hundreds}00 + {tens}0 + {ones}"


def _meters(draw: random.Random) -> Pair:
    kilometers, meters = draw.randint(1, 20), draw.randrange(10, 1000, 10)
    return f"{kilometers} km {meters} m", f"{kilometers * 1000 + meters} m"


def _minutes(draw: random.Random) -> Pair:
    hours, minutes = draw.randint(1, 9), draw.randint(1, 59)
    return f"{hours} h {minutes} min", str(hours * 60 + minutes)
