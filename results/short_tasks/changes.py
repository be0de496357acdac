"""Short tasks of copying a sentence with one change, and of joining and splitting sentences."""

import random
from collections.abc import Callable, Iterable

import inflect
from num2words import num2words

from results.short_tasks.templates import CITIES, COLORS, NAMES, THINGS, Template, drawn, turned
from results.short_tasks.vocabulary import Pair, Task

__all__ = ["of_changes"]

_OPPOSITES = {
    "long": "short", "heavy": "light", "old": "new", "expensive": "cheap", "big": "small",
    "hot": "cold", "clean": "dirty", "full": "empty", "wet": "dry", "hard": "soft", "dark": "bright",
}  # fmt: skip
_COMPARED = {
    "taller": "shorter", "older": "younger", "faster": "slower", "richer": "poorer", "stronger": "weaker",
}  # fmt: skip
_REASONS = {
    "it was raining": "stayed home", "the train was late": "took a taxi", "the shop was closed": "went back",
    "the room was cold": "put on a coat", "the lamp was broken": "lit a candle", "it was late": "went to bed",
}  # fmt: skip
_WITH_AN = ["apple", "eagle", "orange", "umbrella", "onion", "egg", "owl", "engineer", "armchair", "elephant", "igloo"]
_MARKS = [",", ";", "!", "?", ":"]


def of_changes(draw: random.Random) -> Iterable[Task]:
    yield from drawn(draw, [*_of_replaced_words(), *_of_mistakes(), *_of_numbers(), *_of_two_sentences()])


def _of_replaced_words() -> Iterable[Template]:
    yield (
        "change_word",
        ("Make the replacement that the brackets ask for.", "{}\nApply the replacement and write the new sentence."),
        _replaced,
    )
    yield (
        "change_opposite",
        ("Replace the adjective by its opposite.", "{} Rewrite this so that it says the opposite, without not."),
        _opposite,
    )
    yield (
        "change_bold",
        ("Put two stars around the color, as in **gold**.", "Copy with the color in **bold**: {}"),
        lambda draw: _colored(draw, "**{}**".format),
    )
    yield (
        "change_plural",
        ("Rewrite the sentence about two of them.", 'As "One pot is old." becomes "Two pots are old.", rewrite: {}'),
        _plural,
    )
    yield (
        "change_compared",
        ("Say the same the other way round.", 'Example: "A is bigger than B." becomes "B is smaller than A." Now: {}'),
        _compared,
    )


def _replaced(draw: random.Random) -> Pair:
    old, new, other = draw.sample(THINGS, 3)
    sentence = draw.choice(
        [f"The {{}} is next to the {other}.", f"{draw.choice(NAMES)} needs a {{}} and a {other}.", "We sold the {}."]
    )
    return f"{sentence.format(old)} ({old} -> {new})", sentence.format(new)


def _opposite(draw: random.Random) -> Pair:
    one, other = draw.choice([*_OPPOSITES.items()])
    sentence = f"The {draw.choice(THINGS)} {draw.choice(['is', 'was'])} {{}}."
    return sentence.format(one), sentence.format(other)


def _colored(draw: random.Random, change: Callable[[str], str]) -> Pair:
    color = draw.choice(COLORS)
    sentence = draw.choice([f"{draw.choice(NAMES)} has a {{}} {draw.choice(THINGS)}.", "The {thing} in {city} is {}."])
    sentence = sentence.replace("{thing}", draw.choice(THINGS)).replace("{city}", draw.choice(CITIES))
    return sentence.format(color), sentence.format(change(color))


def _plural(draw: random.Random) -> Pair:
    thing, color = draw.choice(THINGS), draw.choice(COLORS)
    return f"One {thing} is {color}.", f"Two {thing}s are {color}."


def _compared(draw: random.Random) -> Pair:
    one, other = draw.choice([*_COMPARED.items()])
    if draw.random() < 0.5:
        one, other = other, one
    first, second = draw.sample(NAMES, 2)
    return f"{first} is {one} than {second}.", f"{second} is {other} than {first}."


def _of_mistakes() -> Iterable[Template]:
    yield (
        "correct_article",
        ("Correct the article if it is wrong.", "{}\nIs a or an right here? Write the sentence with the right one."),
        _article,
    )
    yield (
        "correct_doubled",
        ("One word is there twice by mistake. Write the sentence without it.", "{} Remove the repeated word."),
        _doubled,
    )
    yield (
        "correct_verb",
        ("Use is or are correctly.", "{}\nFix the grammar of this sentence.", "There is one mistake; mend it: {}"),
        _agreed,
    )
    yield (
        "correct_spaces",
        ("Put the missing spaces in.", "The words run together. Write them apart: {}", "{}\nSeparate the words."),
        _spaced,
    )
    yield (
        "remove_punctuation",
        ("Remove all punctuation marks.", "{}\nWrite this again with letters and spaces only."),
        _without_marks,
    )
    yield (
        "remove_brackets",
        ("Leave out what is in brackets.", "{} Write this without the bracketed part.", "Delete the remark: {}"),
        _without_brackets,
    )


def _article(draw: random.Random) -> Pair:
    noun = draw.choice([draw.choice(THINGS), draw.choice(_WITH_AN)])
    sentence = draw.choice(["{name} saw {one} and two {thing}s.", "There was {one} in {city}.", "{name} drew {one}."])
    sentence = sentence.replace("{name}", draw.choice(NAMES)).replace("{thing}", draw.choice(THINGS))
    sentence = sentence.replace("{city}", draw.choice(CITIES))
    right = inflect.engine().a(noun)
    return sentence.format(one=f"{draw.choice(['a', 'an'])} {noun}"), sentence.format(one=right)


def _doubled(draw: random.Random) -> Pair:
    words = (
        f"{draw.choice(NAMES)} left the {draw.choice(COLORS)} {draw.choice(THINGS)} in {draw.choice(CITIES)}".split()
    )
    place = draw.randrange(1, len(words) - 1)
    return f"{' '.join([*words[:place], words[place], *words[place:]])}.", f"{' '.join(words)}."


def _agreed(draw: random.Random) -> Pair:
    thing, rest = draw.choice(THINGS), draw.choice([*COLORS, *(f"in {city}" for city in CITIES)])
    return draw.choice(
        [
            (f"The {thing}s is {rest}.", f"The {thing}s are {rest}."),
            (f"The {thing} are {rest}.", f"The {thing} is {rest}."),
        ]
    )


def _spaced(draw: random.Random) -> Pair:
    sentence = f"{draw.choice(['the', 'my', 'your', 'this'])} {draw.choice(THINGS)} is {draw.choice(COLORS)}"
    return sentence.replace(" ", ""), sentence


def _without_marks(draw: random.Random) -> Pair:
    words = ["look", draw.choice(NAMES), "the", draw.choice(COLORS), draw.choice(THINGS), "is", "here", "now"]
    places = draw.sample(range(len(words)), 3)
    marked = [word + draw.choice(_MARKS) if place in places else word for place, word in enumerate(words)]
    return " ".join(marked), " ".join(words)


def _without_brackets(draw: random.Random) -> Pair:
    remark = draw.choice([f"bought in {draw.choice(CITIES)}", f"a gift from {draw.choice(NAMES)}", "as you know"])
    thing, color = draw.choice(THINGS), draw.choice(COLORS)
    return f"The {thing} ({remark}) is {color}.", f"The {thing} is {color}."


def _of_numbers() -> Iterable[Template]:
    yield (
        "change_to_digits",
        ("Write the number in digits.", "{}\nCopy the sentence with the number as digits."),
        lambda draw: _counted(draw, to="digits"),
    )
    yield (
        "change_to_words",
        ("Write out the number in words.", "{} Copy this with words in place of digits."),
        lambda draw: _counted(draw, to="words"),
    )
    yield (
        "change_one_more",
        ("Raise the number in the sentence by one.", "{}\nOne more was added. Write the sentence as it is now."),
        lambda draw: _counted(draw, to="one more"),
    )


def _counted(draw: random.Random, *, to: str) -> Pair:
    number = draw.randint(2, 60)
    sentence = draw.choice(
        [f"{draw.choice(NAMES)} owns {{}} {draw.choice(THINGS)}s.", "There are {} museums in {city}."]
    )
    sentence = sentence.replace("{city}", draw.choice(CITIES))
    digits, words = sentence.format(number), sentence.format(num2words(number))
    wanted = {"digits": (words, digits), "words": (digits, words), "one more": (digits, sentence.format(number + 1))}
    return wanted[to]


def _of_two_sentences() -> Iterable[Template]:
    yield (
        "sentences_join",
        ("Make one sentence with and.", 'As in "Eva is kind and rich.", join these into one sentence: {}'),
        _joined,
    )
    yield (
        "sentences_split",
        ("Split this into two full sentences without and.", "{}\nSay it in two sentences that repeat the subject."),
        lambda draw: turned(_joined(draw)),
    )
    yield (
        "sentences_so",
        (
            'Rewrite with so, as "I ate because I was hungry." becomes "I was hungry, so I ate."',
            "{} Start with the reason and join what followed with a comma and so.",
        ),
        _consequence,
    )
    yield (
        "sentences_lines",
        ("Write each sentence on a line of its own.", "{}\nPut every sentence on a new line."),
        _lines,
    )


def _joined(draw: random.Random) -> Pair:
    thing, color, other = f"The {draw.choice(THINGS)}", draw.choice(COLORS), draw.choice([*_OPPOSITES])
    return f"{thing} is {color}. {thing} is {other}.", f"{thing} is {color} and {other}."


def _consequence(draw: random.Random) -> Pair:
    reason, result = draw.choice([*_REASONS.items()])
    name = draw.choice(NAMES)
    return f"{name} {result} because {reason}.", f"{reason.capitalize()}, so {name} {result}."


def _lines(draw: random.Random) -> Pair:
    names, things = draw.sample(NAMES, 3), draw.sample(THINGS, 3)
    sentences = [f"{name} has a {thing}." for name, thing in zip(names, things, strict=True)]
    return " ".join(sentences), "\n".join(sentences)
