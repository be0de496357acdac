"""Short tasks of alphabets, codes and ways to write names."""

import random
import re
from collections.abc import Callable, Iterable

from results.short_tasks.templates import COLORS, NAMES, THINGS, Template, drawn
from results.short_tasks.vocabulary import Pair, Task, words

__all__ = ["of_codes"]

_NATO = [
    "Alfa", "Bravo", "Charlie", "Delta", "Echo", "Foxtrot", "Golf", "Hotel", "India", "Juliett", "Kilo", "Lima", "Mike",
    "November", "Oscar", "Papa", "Quebec", "Romeo", "Sierra", "Tango", "Uniform", "Victor", "Whiskey", "X-ray",
    "Yankee", "Zulu",
]  # fmt: skip
_MORSE = [
    ".-", "-...", "-.-.", "-..", ".", "..-.", "--.", "....", "..", ".---", "-.-", ".-..", "--", "-.", "---", ".--.",
    "--.-", ".-.", "...", "-", "..-", "...-", ".--", "-..-", "-.--", "--..",
]  # fmt: skip
_KEYS = {"abc": 2, "def": 3, "ghi": 4, "jkl": 5, "mno": 6, "pqrs": 7, "tuv": 8, "wxyz": 9}
_LEET = str.maketrans("aeiost", "431057")
_LAST_NAMES = ["Baker", "Stone", "Hill", "Fisher", "Woods", "Carter", "Young", "Parker", "Moss", "Field", "Marsh"]


def of_codes(draw: random.Random) -> Iterable[Task]:
    short = [word for word in words() if len(word) in (3, 4, 5)]
    for name, instructions, code in _of_letters():
        yield name, instructions, [(word, code(word)) for word in draw.sample(short, 100)]
    for name, instructions, code in _to_letters():
        yield name, instructions, [(code(word), word) for word in draw.sample(short, 100)]
    yield from drawn(draw, _of_identifiers())


_Code = tuple[str, tuple[str, ...], Callable[[str], str]]
"""A name, ways to say what is wanted, and how a word is written in the code."""


def _of_letters() -> Iterable[_Code]:
    yield "code_nato", ("Spell the word in the NATO alphabet.", "{} in the NATO alphabet, as in Alfa Bravo:"), _nato
    yield "code_morse", ("Write the word in Morse code.", "Morse code for {}, with spaces between the letters:"), _morse
    yield (
        "code_leet",
        ("Write 4 for a, 3 for e, 1 for i, 0 for o, 5 for s and 7 for t.", "a=4 e=3 i=1 o=0 s=5 t=7, so {} is"),
        lambda word: word.translate(_LEET),
    )
    yield (
        "code_ascii",
        ("Write the ASCII codes of the letters, with spaces.", "{}\nEach letter as its decimal ASCII code:"),
        lambda word: " ".join(str(ord(letter)) for letter in word),
    )
    yield (
        "code_positions",
        ("Write each letter as its place in the alphabet, joined by dashes.", "As abc is 1-2-3, encode {}"),
        lambda word: "-".join(str(ord(letter) - 96) for letter in word),
    )
    yield (
        "code_keypad",
        ("Which phone keys spell the word (2 is abc, 3 is def, ...)?", "{}\nThe digits to type on a phone keypad:"),
        _keypad,
    )
    yield (
        "code_next_letters",
        ("Replace each letter by the next one, z by a.", "As cat becomes dbu, encode {}"),
        _next_letters,
    )
    yield (
        "code_mask",
        ("Show the first letter and * for all others.", "As tea becomes t**, mask {}"),
        lambda word: word[0] + "*" * (len(word) - 1),
    )
    yield (
        "code_shape",
        (
            "Write V for each vowel (a, e, i, o, u) and C for other letters.",
            "As tea is CVV and yes is CVC, write {} in this way.",
        ),
        lambda word: re.sub("[a-z]", "C", re.sub("[aeiou]", "V", word)),
    )


def _to_letters() -> Iterable[_Code]:
    yield "decode_nato", ("Which word is spelled here?", "{}\nWrite it as one word in small letters."), _nato
    yield (
        "decode_morse",
        ("Decode the Morse code into small letters.", "{}\nThis is Morse code for which word?"),
        _morse,
    )
    yield (
        "decode_ascii",
        ("Turn the ASCII codes into text.", "Which word do the character codes {} stand for?"),
        lambda word: " ".join(str(ord(letter)) for letter in word),
    )
    yield (
        "decode_next_letters",
        ("Replace each letter by the one before, a by z.", "dbu is cat. Decode {}"),
        _next_letters,
    )


def _nato(word: str) -> str:
    return " ".join(_NATO[ord(letter) - 97] for letter in word)


def _morse(word: str) -> str:
    return " ".join(_MORSE[ord(letter) - 97] for letter in word)


def _keypad(word: str) -> str:
    return "".join(str(key) for letter in word for letters, key in _KEYS.items() if letter in letters)


def _next_letters(word: str) -> str:
    return "".join(chr((ord(letter) - 96) % 26 + 97) for letter in word)


def _of_identifiers() -> Iterable[Template]:
    yield "case_snake", ("Write the name in snake_case.", "As redCup is red_cup, write {}"), _snake_from_camel
    yield "case_camel", ("Write the name in camelCase.", "{}\nAs camelCase:"), _camel_from_snake
    yield "case_constant", ("Write it as a constant, LIKE_THIS.", "{} as CONSTANT_CASE:"), _constant
    yield (
        "case_slug",
        ("Make a URL slug: small letters, dashes, no punctuation.", 'As "My Tea!" is my-tea, write the slug of {}'),
        _slug,
    )
    yield (
        "name_initials",
        ("Write the initials with periods, like A.B.", "{}\nInitials, such as E.K.:"),
        _initials,
    )
    yield (
        "name_last_first",
        ("Write the last name first, with a comma.", "Write {} as in a phone book: last name, comma, first name."),
        _last_name_first,
    )
    yield (
        "name_email",
        ("Write the address in the form first.last@example.com.", "Eva Hill is eva.hill@example.com, and {} is"),
        _address,
    )


def _three_words(draw: random.Random) -> list[str]:
    return [draw.choice(["my", "new", "old", "best", "next"]), draw.choice(COLORS), draw.choice(THINGS)]


def _camel(parts: list[str]) -> str:
    return parts[0] + "".join(part.capitalize() for part in parts[1:])


def _snake_from_camel(draw: random.Random) -> Pair:
    parts = _three_words(draw)
    return _camel(parts), "_".join(parts)


def _camel_from_snake(draw: random.Random) -> Pair:
    parts = _three_words(draw)
    return "_".join(parts), _camel(parts)


def _constant(draw: random.Random) -> Pair:
    parts = _three_words(draw)
    return " ".join(parts), "_".join(parts).upper()


def _slug(draw: random.Random) -> Pair:
    parts = _three_words(draw)
    return " ".join(part.capitalize() for part in parts) + draw.choice(["!", "?", "..."]), "-".join(parts)


def _full_name(draw: random.Random) -> tuple[str, str]:
    return draw.choice(NAMES), draw.choice(_LAST_NAMES)


def _initials(draw: random.Random) -> Pair:
    first, last = _full_name(draw)
    return f"{first} {last}", f"{first[0]}.{last[0]}."


def _last_name_first(draw: random.Random) -> Pair:
    first, last = _full_name(draw)
    return f"{first} {last}", f"{last}, {first}"


def _address(draw: random.Random) -> Pair:
    first, last = _full_name(draw)
    return f"{first} {last}", f"{first}.{last}@example.com".lower()
