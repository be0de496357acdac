"""Short tasks of writing a sentence in another way."""

import random
from collections.abc import Iterable

from lemminflect import getInflection

from results.short_tasks.templates import CITIES, COLORS, NAMES, THINGS, WEEKDAYS, Template, drawn
from results.short_tasks.vocabulary import Pair, Task

__all__ = ["of_rewriting"]

_VERBS = [
    "paint",
    "clean",
    "repair",
    "sell",
    "carry",
    "find",
    "borrow",
    "move",
    "buy",
    "hide",
    "draw",
    "wash",
    "choose",
]
"""Those that take a thing."""
_PEOPLE = {
    "The girl": "she",
    "The boy": "he",
    "The queen": "she",
    "The king": "he",
    "The man": "he",
    "The woman": "she",
}
_MOODS = ["tired", "happy", "hungry", "sick", "busy", "late", "ready", "angry", "nervous", "alone"]
_CONTRACTIONS = {
    "do not": "don't", "is not": "isn't", "cannot": "can't", "will not": "won't", "did not": "didn't",
    "was not": "wasn't", "would not": "wouldn't", "does not": "doesn't",
}  # fmt: skip
_PRONOUNS = {"she": ("She", "her"), "he": ("He", "his"), "they": ("They", "their"), "we": ("We", "our")}


def of_rewriting(draw: random.Random) -> Iterable[Task]:
    yield from drawn(draw, [*_of_verbs(), *_of_people(), *_of_style()])


def _form(verb: str, tag: str) -> str:
    return str(getInflection(verb, tag)[0])


def _of_verbs() -> Iterable[Template]:
    yield (
        "sentence_negate",
        ("Make the sentence negative with does not.", "{}\nRewrite this with does not."),
        lambda draw: _changed(draw, "{name} {third} the {thing}.", "{name} does not {verb} the {thing}."),
    )
    yield (
        "sentence_question",
        ("Turn the statement into a question with does.", "{} Make this a yes-or-no question that starts with Does."),
        lambda draw: _changed(draw, "{name} {third} the {thing}.", "Does {name} {verb} the {thing}?"),
    )
    yield (
        "sentence_past",
        ("Put the sentence into the simple past.", "{}\nRewrite this in the past tense.", "Write it in the past: {}"),
        lambda draw: _changed(draw, "{name} {third} the {thing}.", "{name} {past} the {thing}."),
    )
    yield (
        "sentence_future",
        ("Put the sentence into the future with will.", "{} Say the same about the future, with will."),
        lambda draw: _changed(draw, "{name} {third} a {color} {thing}.", "{name} will {verb} a {color} {thing}."),
    )
    yield (
        "sentence_progressive",
        ("Rewrite with is and the -ing form.", 'Example: "Eva sings." becomes "Eva is singing." Now change: {}'),
        lambda draw: _changed(draw, "{name} {third} the {thing}.", "{name} is {ing} the {thing}."),
    )
    yield (
        "sentence_passive",
        ("Put the sentence into the passive.", "{}\nRewrite it in the passive voice, with by."),
        lambda draw: _changed(draw, "{name} {past} the {thing}.", "The {thing} was {done} by {name}."),
    )
    yield (
        "sentence_active",
        ("Put the passive sentence into the active.", "{} Rewrite this in the active voice."),
        lambda draw: _changed(draw, "The {thing} was {done} by {name}.", "{name} {past} the {thing}."),
    )


def _changed(draw: random.Random, given: str, wanted: str) -> Pair:
    verb = draw.choice(_VERBS)
    parts = {
        "name": draw.choice(NAMES),
        "verb": verb,
        "third": _form(verb, "VBZ"),
        "past": _form(verb, "VBD"),
        "ing": _form(verb, "VBG"),
        "done": _form(verb, "VBN"),
        "thing": draw.choice(THINGS),
        "color": draw.choice(COLORS),
    }
    return given.format(**parts), wanted.format(**parts)


def _of_people() -> Iterable[Template]:
    yield (
        "sentence_person",
        (
            "Rewrite the sentence for the person in brackets, like: I sold my hat. (he) He sold his hat.",
            "Change I and my to fit the pronoun in brackets: {}",
        ),
        _other_person,
    )
    yield (
        "sentence_pronoun",
        ("Replace the subject by he or she.", "{}\nStart the sentence with a pronoun instead."),
        _pronoun,
    )
    yield (
        "sentence_reported",
        ("Report what was said, with that, in the past.", "{} Turn this into reported speech with said that."),
        _reported,
    )
    yield (
        "sentence_swap_names",
        ("Let the two people change places in the sentence.", "{}\nRewrite this with the two names swapped."),
        _swapped,
    )
    yield (
        "sentence_redact",
        ("Replace the name by ***.", "{} Hide the person's name as *** and copy the rest."),
        _redacted,
    )


def _other_person(draw: random.Random) -> Pair:
    pronoun = draw.choice([*_PRONOUNS])
    subject, owner = _PRONOUNS[pronoun]
    verb, thing = _form(draw.choice(_VERBS), "VBD"), draw.choice(THINGS)
    return f"I {verb} my {thing}. ({pronoun})", f"{subject} {verb} {owner} {thing}."


def _pronoun(draw: random.Random) -> Pair:
    person = draw.choice([*_PEOPLE])
    rest = f"{_form(draw.choice(_VERBS), 'VBD')} the {draw.choice(COLORS)} {draw.choice(THINGS)}."
    return f"{person} {rest}", f"{_PEOPLE[person].capitalize()} {rest}"


def _reported(draw: random.Random) -> Pair:
    person, mood, place = draw.choice([*_PEOPLE]), draw.choice(_MOODS), draw.choice(CITIES)
    said = draw.choice([f"{mood}", f"in {place}"])
    return f'{person} said, "I am {said}."', f"{person} said that {_PEOPLE[person]} was {said}."


def _swapped(draw: random.Random) -> Pair:
    first, second = draw.sample(NAMES, 2)
    rest = draw.choice(["gave {} a {thing}", "wrote {} a letter about the {thing}", "showed {} the {thing}"])
    rest = rest.replace("{thing}", draw.choice(THINGS))
    return f"{first} {rest.format(second)}.", f"{second} {rest.format(first)}."


def _redacted(draw: random.Random) -> Pair:
    text = draw.choice(["{} lives in {city}.", "On {day}, {} will fly to {city}.", "I met {} in {city} last {day}."])
    text = text.replace("{city}", draw.choice(CITIES)).replace("{day}", draw.choice(WEEKDAYS))
    return text.format(draw.choice(NAMES)), text.format("***")


def _of_style() -> Iterable[Template]:
    yield (
        "sentence_polite",
        ("Make the order polite: start with Could you please.", "{}\nAsk for this with Could you please ...?"),
        _polite,
    )
    yield (
        "sentence_contract",
        ("Use the short form with an apostrophe.", "{} Write the sentence with a contraction."),
        _contraction,
    )
    yield (
        "sentence_punctuate",
        ("Add the capital letter and the punctuation mark.", "{}\nCorrect the first letter and the end of this."),
        _punctuated,
    )
    yield (
        "sentence_thanks",
        (
            "Write a note such as: Dear Eva, thank you for the pie! It is for this gift:",
            "{} Thank the giver in the form: Dear NAME, thank you for the GIFT!",
        ),
        _thanks,
    )
    yield (
        "sentence_headline",
        ("Start every word with a capital and drop the period.", "{}\nWrite this as a headline: Every Word Like This."),
        _headline,
    )


def _polite(draw: random.Random) -> Pair:
    verb, thing = draw.choice(_VERBS), draw.choice(THINGS)
    rest = draw.choice(["", " today", " again", " for me"])
    return f"{verb.capitalize()} the {thing}{rest}.", f"Could you please {verb} the {thing}{rest}?"


def _contraction(draw: random.Random) -> Pair:
    full, short = draw.choice([*_CONTRACTIONS.items()])
    plural = full == "do not"
    if full in ("is not", "was not"):
        rest = f"The {draw.choice(THINGS)} {{}} {draw.choice([*COLORS, 'in ' + draw.choice(CITIES)])}."
    else:
        verb, thing = draw.choice(_VERBS), draw.choice(THINGS)
        rest = f"{'They' if plural else draw.choice(NAMES)} {{}} {verb} the {thing}."
    return rest.format(full), rest.format(short)


def _punctuated(draw: random.Random) -> Pair:
    verb, thing, name = draw.choice(_VERBS), draw.choice(THINGS), draw.choice(NAMES)
    right = draw.choice([f"Where did {name} {verb} the {thing}?", f"We {_form(verb, 'VBD')} {name}'s {thing}."])
    return f"{right[0].lower()}{right[1:-1]}", right


def _thanks(draw: random.Random) -> Pair:
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    given = draw.choice([f"{name} gave you a {thing}.", f"You got a {thing} from {name}."])
    return given, f"Dear {name}, thank you for the {thing}!"


def _headline(draw: random.Random) -> Pair:
    verb, thing, city = _form(draw.choice(_VERBS), "VBZ"), draw.choice(THINGS), draw.choice(CITIES)
    text = draw.choice([f"{draw.choice(NAMES)} {verb} {thing} in {city}", f"Mayor of {city} {verb} {thing}"])
    return f"{text.lower().capitalize()}.", " ".join(word[0].upper() + word[1:] for word in text.split())
