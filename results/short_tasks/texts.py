"""Short tasks of reading a longer text: a question, a statement, a letter or a plan of several sentences."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass

from results.short_tasks.templates import CITIES, COLORS, NAMES, THINGS, WEEKDAYS, Template, clock, drawn, true
from results.short_tasks.vocabulary import Pair, Task

__all__ = ["of_texts"]

_REASONS = {
    "broken": "It does not work at all.",
    "late": "It came two weeks late.",
    "wrong": "I had ordered another one.",
}
_OPENINGS = [
    "Last week there was a market in the old part of the town, and many people came although it was cold.",
    "When the shop opened in the morning, a few people were already waiting in front of the door.",
    "The neighbors told each other what they had bought during their holidays.",
]


@dataclass(frozen=True, kw_only=True)
class _Purchase:
    """What one person of a text did."""

    name: str
    city: str
    color: str
    thing: str
    day: str

    def __str__(self) -> str:
        return f"{self.name} from {self.city} bought a {self.color} {self.thing} on {self.day}."


def of_texts(draw: random.Random) -> Iterable[Task]:
    yield from drawn(draw, [*_of_purchases(), *_of_plans(), *_of_messages()])


def _purchases(draw: random.Random) -> list[_Purchase]:
    parts = (draw.sample(names, 4) for names in (NAMES, CITIES, COLORS, THINGS, WEEKDAYS))
    return [
        _Purchase(name=name, city=city, color=color, thing=thing, day=day)
        for name, city, color, thing, day in zip(*parts, strict=True)
    ]


def _text(draw: random.Random, purchases: list[_Purchase]) -> str:
    return " ".join([draw.choice(_OPENINGS), *map(str, purchases)])


def _of_purchases() -> Iterable[Template]:
    yield (
        "text_question",
        ("Read the text and answer with one word.", "{}\nAnswer the question with a single word from the text."),
        _question,
    )
    yield (
        "text_statement",
        ("Is the last sentence true by the text? Say true or false.", "{}\nTrue or false, by the text above?"),
        _statement,
    )
    yield (
        "text_sentence_about",
        ("Copy the sentence about the person named at the end.", "{}\nWhich sentence is about this person? Copy it."),
        _sentence_about,
    )
    yield (
        "text_table",
        (
            "Write a line NAME: THING for each person, in the order of the text.",
            "{}\nWho bought what? Lines like Eva: pot",
        ),
        _table,
    )
    yield (
        "text_cities",
        ("List the cities in the order of the text, with commas.", "{}\nWhich cities are mentioned? Use commas."),
        _cities,
    )


def _question(draw: random.Random) -> Pair:
    purchases = _purchases(draw)
    one = draw.choice(purchases)
    question, answer = draw.choice(
        [
            (f"Who bought the {one.thing}?", one.name),
            (f"What did {one.name} buy?", one.thing),
            (f"Which city does {one.name} come from?", one.city),
            (f"What color is the {one.thing}?", one.color),
            (f"On which day did {one.name} buy something?", one.day),
        ]
    )
    return f"{_text(draw, purchases)} {question}", answer


def _statement(draw: random.Random) -> Pair:
    purchases = _purchases(draw)
    one, other = draw.sample(purchases, 2)
    claimed = draw.choice([one, other])
    claim = draw.choice(
        [
            f"{one.name} bought the {claimed.thing}.",
            f"{one.name} comes from {claimed.city}.",
            f"The {one.thing} is {claimed.color}.",
        ]
    )
    return f"{_text(draw, purchases)}\n{claim}", true(claimed == one)


def _sentence_about(draw: random.Random) -> Pair:
    purchases = _purchases(draw)
    one = draw.choice(purchases)
    return f"{_text(draw, purchases)}\nPerson: {one.name}", str(one)


def _table(draw: random.Random) -> Pair:
    purchases = _purchases(draw)
    return _text(draw, purchases), "\n".join(f"{one.name}: {one.thing}" for one in purchases)


def _cities(draw: random.Random) -> Pair:
    purchases = _purchases(draw)
    return _text(draw, purchases), ", ".join(one.city for one in purchases)


def _of_plans() -> Iterable[Template]:
    yield (
        "text_plan_order",
        ("List the names from the earliest to the latest time.", "{}\nWho comes first, second and third? Use commas."),
        _plan_order,
    )
    yield (
        "text_plan_free",
        ("On which of these days is nothing planned?", "{}\nWhich day is free? Answer with the weekday only."),
        _free_day,
    )


def _plan_order(draw: random.Random) -> Pair:
    names, minutes = draw.sample(NAMES, 3), draw.sample(range(8 * 60, 20 * 60, 15), 3)
    given = (
        f"The dentist has three patients today. {names[0]} comes at {clock(minutes[0])} for a check. "
        f"For {names[1]}, who needs a new filling, the time is {clock(minutes[1])}. "
        f"And {names[2]} called to say that {clock(minutes[2])} is fine."
    )
    return given, ", ".join(name for _, name in sorted(zip(minutes, names, strict=True)))


def _free_day(draw: random.Random) -> Pair:
    days = draw.sample(WEEKDAYS[:5], 5)
    name, city, thing = draw.choice(NAMES), draw.choice(CITIES), draw.choice(THINGS)
    given = (
        f"{name} looks at the plan from Monday to Friday. On {days[0]} there is a meeting in {city}, "
        f"and {days[1]} begins at the dentist. "
        f"On {days[2]} somebody brings a new {thing}, and {days[3]} is for the big report."
    )
    return given, days[4]


def _of_messages() -> Iterable[Template]:
    yield (
        "text_complaint",
        (
            "Sum up the letter as JSON with the keys customer, thing and problem (broken, late or wrong).",
            '{}\nJSON like {"customer": "Eva", "thing": "pot", "problem": "broken"}, or with late or wrong:',
        ),
        _complaint,
    )
    yield (
        "text_dialogue",
        ("Who said the last line of the dialogue? Answer with the name.", "{}\nName the one who speaks last."),
        _dialogue,
    )
    yield (
        "text_reply",
        (
            "Accept the invitation like this: Dear Eva, I will come on Sunday at 9:00.",
            "{}\nReply in this form: Dear NAME, I will come on DAY at TIME.",
        ),
        _reply,
    )


def _complaint(draw: random.Random) -> Pair:
    name, thing, problem = draw.choice(NAMES), draw.choice(THINGS), draw.choice([*_REASONS])
    given = (
        f"Dear shop, in {draw.choice(CITIES)} I read about your {draw.choice(COLORS)} {thing} and ordered it on "
        f"{draw.choice(WEEKDAYS)}. {_REASONS[problem]} Please tell me what we can do. Kind regards, {name}"
    )
    return given, json.dumps({"customer": name, "thing": thing, "problem": problem})


def _dialogue(draw: random.Random) -> Pair:
    names, thing, city = draw.sample(NAMES, 3), draw.choice(THINGS), draw.choice(CITIES)
    lines = [
        f"Have you seen my {thing}?",
        f"I think you left it in {city}.",
        "No, it was here this morning.",
        "Then let us look for it together.",
    ]
    speakers = [*names, draw.choice(names[:2])]
    return "\n".join(f"{name}: {line}" for name, line in zip(speakers, lines, strict=True)), speakers[-1]


def _reply(draw: random.Random) -> Pair:
    name, day, time = draw.choice(NAMES), draw.choice(WEEKDAYS), clock(draw.randrange(10 * 60, 20 * 60, 15))
    given = (
        f"Hello! I have moved to {draw.choice(CITIES)} and would like to show you my new home and the "
        f"{draw.choice(COLORS)} {draw.choice(THINGS)} that you gave me. Can you come on {day} at {time}? Yours, {name}"
    )
    return given, f"Dear {name}, I will come on {day} at {time}."
