"""Short tasks of saying what kind of word or sentence something is."""

import random
from collections.abc import Callable, Iterable

from lemminflect import getInflection

from results.short_tasks.templates import CITIES, COLORS, KINDS, NAMES, THINGS, WEEKDAYS, Template, clock, drawn, true
from results.short_tasks.vocabulary import Pair, Task, yes

__all__ = ["of_classes"]

_VERBS = ["paint", "clean", "repair", "sell", "carry", "find", "wash", "draw"]
_TOPICS = {
    "sports": [
        "{name} scored two goals on {day}.",
        "The team from {city} won the match.",
        "{name} ran a marathon in {city}.",
    ],
    "weather": [
        "It will rain in {city} on {day}.",
        "{day} brings snow and wind to {city}.",
        "The sun shines in {city} until {day}.",
    ],
    "food": [
        "{name} baked bread on {day}.",
        "The soup in {city} was salty.",
        "{name} cooked rice with beans for {day}.",
    ],
    "music": [
        "{name} plays the violin on {day}.",
        "The choir of {city} sang a song.",
        "{name} gave a concert in {city}.",
    ],
}
_MOODS = {
    "positive": ["I love this {thing}.", "The {thing} works perfectly.", "{city} was wonderful, we will come again."],
    "negative": ["This {thing} is a waste of money.", "The {thing} broke at once.", "{city} was awful, never again."],
}
_REQUESTS = {
    "delivery": ["My {thing} has not arrived since {day}.", "Where is the {color} {thing} that I ordered on {day}?"],
    "payment": ["You charged my card twice for the {thing}.", "The bill for the {color} {thing} is too high."],
    "account": ["I forgot my password on {day}.", "I cannot log in since {day}.", "{name} needs a new user name."],
    "return": ["I want to send the {color} {thing} back.", "How can I give back the {thing} that I bought on {day}?"],
}
_URGENT = {
    "yes": [
        "Call {name} at once, it cannot wait!",
        "I need the {thing} immediately.",
        "Emergency in {city}, come now!",
    ],
    "no": ["Call {name} whenever you like.", "Bring the {thing} some time, no hurry.", "Take your time in {city}."],
}
_TONES = {
    "formal": [
        "Dear Madam, I would like to order a {color} {thing}.",
        "Dear Sir or Madam, I am writing about the {thing}.",
    ],
    "casual": ["Hey {name}, wanna see my {thing}?", "Hi {name}, gonna be in {city} soon, yay!"],
}
_SENTENCES = {
    "question": ["Where is the {color} {thing}?", "Did {name} go to {city}?"],
    "order": ["Bring me the {color} {thing}.", "Go to {city} on {day}."],
    "statement": ["The {color} {thing} is here.", "{name} went to {city}."],
}
_SPEAKERS = {
    "waiter": [
        "Would you like to order now, {name}?",
        "Your table for {day} is ready.",
        "I will bring the bill for {name}.",
    ],
    "doctor": [
        "Take this medicine until {day}, {name}.",
        "Your blood test from {day} is fine.",
        "Where does it hurt, {name}?",
    ],
    "teacher": [
        "Please do your homework for {day}.",
        "{name}, read the next page to the class.",
        "The exam is on {day}, {name}.",
    ],
    "driver": ["Next stop: {city}.", "Buckle up, we leave for {city}.", "The road to {city} is blocked on {day}."],
}
_PEOPLE = {"first": ["I", "we"], "second": ["you"], "third": ["she", "he", "they"]}


def of_classes(draw: random.Random) -> Iterable[Task]:
    yield from drawn(draw, [*_of_content(), *_of_form(), *_of_truth()])


def _of_content() -> Iterable[Template]:
    by_sentences: list[tuple[str, tuple[str, ...], dict[str, list[str]]]] = [
        (
            "class_topic",
            ("Is this about sports, weather, food or music?", "{}\nTopic (sports, weather, food, music):"),
            _TOPICS,
        ),
        ("class_mood", ("Is the review positive or negative?", "{} Answer positive or negative."), _MOODS),
        (
            "class_request",
            (
                "Sort this message: delivery, payment, account or return.",
                "{}\nWhich department is right: delivery, payment, account or return?",
            ),
            _REQUESTS,
        ),
        (
            "class_urgent",
            ("Is it urgent? Say yes or no.", "{} Does this have to be done right away, yes or no?"),
            _URGENT,
        ),
        ("class_tone", ("Is the tone formal or casual?", "{}\nFormal or casual?"), _TONES),
        (
            "class_sentence",
            ("Is this a question, an order or a statement?", "{} Answer: question, order or statement."),
            _SENTENCES,
        ),
        (
            "class_speaker",
            ("Who says this: a waiter, doctor, teacher or driver?", "{}\nSpeaker (waiter, doctor, teacher, driver):"),
            _SPEAKERS,
        ),
    ]
    for name, instructions, sentences in by_sentences:
        yield name, instructions, _sentence_of_class(sentences)


def _sentence_of_class(sentences: dict[str, list[str]]) -> Callable[[random.Random], Pair]:
    def make(draw: random.Random) -> Pair:
        label = draw.choice([*sentences])
        sentence = draw.choice(sentences[label]).format(
            name=draw.choice(NAMES),
            city=draw.choice(CITIES),
            day=draw.choice(WEEKDAYS),
            thing=draw.choice(THINGS),
            color=draw.choice(COLORS),
        )
        return sentence, label

    return make


def _of_form() -> Iterable[Template]:
    yield (
        "class_tense",
        ("Is the sentence in the past, present or future?", "{}\nTense: past, present or future?"),
        _tense,
    )
    yield "class_voice", ("Is the sentence active or passive?", "{} Active or passive?"), _voice
    yield (
        "class_person",
        ("Is the subject in the first, second or third person?", "{}\nPerson of the subject (first, second, third):"),
        _person,
    )
    yield (
        "class_correct",
        ("Is the sentence correct English? Say correct or wrong.", "{} Correct or wrong grammar?"),
        _correct,
    )
    yield (
        "class_token",
        ("Is this a date, a time, a price or an address?", "{}\nKind (date, time, price, address):"),
        _token,
    )


def _parts(draw: random.Random) -> tuple[str, str, str]:
    return draw.choice(NAMES), draw.choice(_VERBS), draw.choice(THINGS)


def _tense(draw: random.Random) -> Pair:
    name, verb, thing = _parts(draw)
    forms = {"past": getInflection(verb, "VBD")[0], "present": getInflection(verb, "VBZ")[0], "future": f"will {verb}"}
    tense = draw.choice([*forms])
    return f"{name} {forms[tense]} the {thing}.", tense


def _voice(draw: random.Random) -> Pair:
    name, verb, thing = _parts(draw)
    active = f"{name} {getInflection(verb, 'VBD')[0]} the {thing}."
    passive = f"The {thing} was {getInflection(verb, 'VBN')[0]} by {name}."
    return draw.choice([(active, "active"), (passive, "passive")])


def _person(draw: random.Random) -> Pair:
    person = draw.choice([*_PEOPLE])
    _, verb, thing = _parts(draw)
    return f"{draw.choice(_PEOPLE[person]).capitalize()} will {verb} the {thing}.", person


def _correct(draw: random.Random) -> Pair:
    name, verb, thing = _parts(draw)
    right = [f"{name} will {verb} the {thing}.", f"{name} did not {verb} a {thing}.", f"The {thing}s are here, {name}."]
    wrong = [
        f"{name} will to {verb} the {thing}.",
        f"{name} not did {verb} a {thing}.",
        f"The {thing}s is here, {name}.",
    ]
    return draw.choice([(draw.choice(right), "correct"), (draw.choice(wrong), "wrong")])


def _token(draw: random.Random) -> Pair:
    return draw.choice(
        [
            (
                f"{draw.randint(1, 28)} {draw.choice(['March', 'May', 'July', 'October'])} {draw.randint(1950, 2030)}",
                "date",
            ),
            (clock(draw.randrange(24 * 60)), "time"),
            (f"${draw.randint(1, 99)}.{draw.randint(10, 99)}", "price"),
            (f"{draw.randint(1, 99)} {draw.choice(['Mill', 'Park', 'Hill'])} Street, {draw.choice(CITIES)}", "address"),
        ]
    )


def _of_truth() -> Iterable[Template]:
    yield "class_kind", ("What kind of thing is it? Choose from the brackets.", "{} Choose the kind that fits."), _kind
    yield (
        "class_is_a",
        ("Is the statement true? Say true or false.", "{}\nTrue or false?", "True or false: {}"),
        _is_a,
    )
    yield (
        "class_same_meaning",
        ("Do both sentences say the same? Say yes or no.", "{} Same meaning, yes or no?"),
        _same_meaning,
    )
    yield (
        "class_same_kind",
        ("Are both things of the same kind? Say yes or no.", "Do {} belong together, as two animals do? Yes or no:"),
        _same_kind,
    )
    yield (
        "class_all_labels",
        (
            "Name the kind of each word, with commas: animal, fruit or vehicle.",
            "{}\nFor each: animal, fruit or vehicle.",
        ),
        _labels,
    )


def _kind(draw: random.Random) -> Pair:
    kinds = draw.sample([*KINDS], 3)
    kind = draw.choice(kinds)
    return f"{draw.choice(KINDS[kind])} ({', '.join(kinds)})", kind


def _is_a(draw: random.Random) -> Pair:
    kind, other = draw.sample([*KINDS], 2)
    word = draw.choice(KINDS[kind])
    claimed = draw.choice([kind, other])
    return f"The word {word} names a kind of {claimed}.", true(claimed == kind)


def _same_meaning(draw: random.Random) -> Pair:
    name, verb, thing = _parts(draw)
    other = draw.choice([one for one in NAMES if one != name])
    first = f"{name} {getInflection(verb, 'VBD')[0]} the {thing}."
    doer = draw.choice([name, other])
    return f"{first} The {thing} was {getInflection(verb, 'VBN')[0]} by {doer}.", yes(doer == name)


def _same_kind(draw: random.Random) -> Pair:
    kind, other = draw.sample([*KINDS], 2)
    first, second = draw.sample(KINDS[kind], 2)
    if draw.random() < 0.5:
        second = draw.choice(KINDS[other])
    return f"{first} and {second}", yes(second in KINDS[kind])


def _labels(draw: random.Random) -> Pair:
    kinds = draw.choices(["animal", "fruit", "vehicle"], k=3)
    return ", ".join(draw.choice(KINDS[kind]) for kind in kinds), ", ".join(kinds)
