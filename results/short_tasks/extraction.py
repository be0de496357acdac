"""Short tasks of finding a part of a sentence."""

import json
import random
from collections.abc import Iterable

from results.short_tasks.templates import CITIES, COLORS, NAMES, THINGS, WEEKDAYS, Template, clock, drawn, numbers
from results.short_tasks.vocabulary import Pair, Task

__all__ = ["of_extraction"]

_HOSTS = ["example.com", "library.org", "weather.net", "shop.example.org", "news.example.com", "garden.info"]
_PAGES = ["about", "contact", "prices", "news", "help", "team", "blog", "search"]
_TAGS = ["travel", "food", "music", "sport", "nature", "summer", "books", "art", "family", "garden"]


def of_extraction(draw: random.Random) -> Iterable[Task]:
    yield from drawn(draw, [*_of_one_part(), *_of_signs(), *_of_several_parts(), *_of_words()])


def _of_one_part() -> Iterable[Template]:
    yield "extract_name", ("Who is the sentence about? Answer with the name only.", "{} Which person is meant?"), _trip
    yield (
        "extract_city",
        ("Which city is mentioned?", "{} Name the city in this sentence.", "Copy only the city from the text:"),
        lambda draw: _story(draw, "city"),
    )
    yield (
        "extract_time",
        ("At what time does it happen? Give the time only.", "Find the time of day in this text: {}"),
        lambda draw: _story(draw, "time"),
    )
    yield (
        "extract_color",
        ("Which color is mentioned in the message?", "{}\nColor:", "Read this and name the color. {}"),
        lambda draw: _story(draw, "color"),
    )
    yield (
        "extract_thing",
        ("What was bought? Answer with one word.", "{}\nWhat thing did the person buy?"),
        lambda draw: _story(draw, "thing"),
    )
    yield (
        "extract_quote",
        ("Write only the words that were spoken, without quotation marks.", "{} What exactly was said?"),
        _quote,
    )


def _trip(draw: random.Random) -> Pair:
    name = draw.choice(NAMES)
    kind = draw.choice(
        ["flew to {city} on {day}", "moved from {city} last {day}", "called a friend in {city} on {day}"]
    )
    return f"{name} {kind.format(city=draw.choice(CITIES), day=draw.choice(WEEKDAYS))}.", name


def _story(draw: random.Random, wanted: str) -> Pair:
    parts = {
        "name": draw.choice(NAMES),
        "city": draw.choice(CITIES),
        "time": clock(draw.randrange(7 * 60, 21 * 60, 5)),
        "color": draw.choice(COLORS),
        "day": draw.choice(WEEKDAYS),
        "thing": draw.choice(THINGS),
    }
    sentence = draw.choice(
        [
            "On {day} at {time}, {name} bought a {color} {thing} in {city}.",
            "{name} was in {city} on {day} and bought a {color} {thing} at {time}.",
            "At {time} on {day}, {name} found a shop in {city} and bought the {color} {thing} there.",
        ]
    )
    return sentence.format(**parts), parts[wanted]


def _quote(draw: random.Random) -> Pair:
    said = f"The {draw.choice(THINGS)} is {draw.choice(COLORS)}"
    name = draw.choice(NAMES)
    return draw.choice([f'{name} said, "{said}."', f'"{said}," said {name}.']), said


def _of_signs() -> Iterable[Template]:
    yield "extract_email", ("Find the email address.", "{}\nWrite only the email address from this text."), _email
    yield "extract_phone", ("Which phone number is given?", "Copy the phone number from the message: {}"), _phone
    yield (
        "extract_price",
        ("How much did it cost? Answer with the price.", "{} What was the price?", "Find the price in the text."),
        _price,
    )
    yield (
        "extract_hashtags",
        ("List the hashtags, separated by commas.", "{}\nWhich hashtags are in the post? Separate them by commas."),
        _hashtags,
    )


def _email(draw: random.Random) -> Pair:
    name = draw.choice(NAMES)
    address = f"{name.lower()}{draw.randint(1, 99)}@{draw.choice(_HOSTS)}"
    return f"For questions about the {draw.choice(THINGS)}, please write to {name} at {address} before Friday.", address


def _phone(draw: random.Random) -> Pair:
    phone = f"{draw.randint(200, 989)}-555-{draw.randint(1000, 9999)}"
    return f"Hello {draw.choice(NAMES)}, please call me back at {phone} after {draw.randint(2, 9)} pm.", phone


def _price(draw: random.Random) -> Pair:
    price = f"${draw.randint(2, 80)}.{draw.choice(['00', '50', '99', '25'])}"
    count = draw.randint(2, 9)
    return f"{draw.choice(NAMES)} paid {price} for {count} {draw.choice(THINGS)}s in {draw.choice(CITIES)}.", price


def _hashtags(draw: random.Random) -> Pair:
    tags = [f"#{tag}" for tag in draw.sample(_TAGS, draw.randint(2, 3))]
    return f"What a day in {draw.choice(CITIES)}! {' '.join(tags)}", ", ".join(tags)


def _of_several_parts() -> Iterable[Template]:
    yield (
        "extract_all_names",
        ("Who took part? List the names with commas.", "{}\nWrite the people's names as a comma-separated list."),
        _people,
    )
    yield (
        "extract_route",
        ("Write the route as FROM -> TO, for example Cairo -> Lima.", "{} Give start and end in the form A -> B."),
        _route,
    )
    yield (
        "extract_json",
        (
            "Write the person as JSON with the keys name, age and city.",
            '{} Answer with JSON such as {"name": "Eva", "age": 30, "city": "Bern"}.',
        ),
        _person,
    )
    yield (
        "extract_shopping_list",
        ("Turn the request into a list with one item a line, each after a dash.", "{} List what to buy, as - items."),
        _shopping,
    )
    yield "extract_host", ("Which website does the address belong to?", "Give the domain of this address: {}"), _host
    yield (
        "extract_numbers",
        ("List all numbers in the text, with commas.", "{} Which numbers appear here? Answer like 1, 2, 3."),
        _amounts,
    )


def _people(draw: random.Random) -> Pair:
    names = draw.sample(NAMES, 3)
    city = draw.choice(CITIES)
    return f"{names[0]} and {names[1]} met {names[2]} in {city}.", ", ".join(names)


def _route(draw: random.Random) -> Pair:
    start, end = draw.sample(CITIES, 2)
    form = draw.choice(["The train from {} to {} is late.", "We left {} in the morning and reached {} at night."])
    return form.format(start, end), f"{start} -> {end}"


def _person(draw: random.Random) -> Pair:
    person = {"name": draw.choice(NAMES), "age": draw.randint(18, 80), "city": draw.choice(CITIES)}
    return "{name}, {age} years old, lives in {city}.".format(**person), json.dumps(person)


def _shopping(draw: random.Random) -> Pair:
    first, second, third = (f"{draw.randint(2, 9)} {thing}s" for thing in draw.sample(THINGS, 3))
    return f"Please buy {first}, {second} and {third}.", f"- {first}\n- {second}\n- {third}"


def _host(draw: random.Random) -> Pair:
    host = draw.choice(_HOSTS)
    return f"https://{host}/{draw.choice(_PAGES)}/{draw.randint(1, 99)}", host


def _amounts(draw: random.Random) -> Pair:
    first, second, third = numbers(draw, 3)
    things = draw.sample(THINGS, 3)
    text = f"The shop has {first} {things[0]}s, {second} {things[1]}s and {third} {things[2]}s."
    return text, f"{first}, {second}, {third}"


def _of_words() -> Iterable[Template]:
    yield (
        "sentence_last_word",
        ("What is the last word of the sentence? Leave out the period.", "{}\nWrite this sentence's final word only."),
        _last_word,
    )
    yield (
        "sentence_num_words",
        ("How many words has the sentence?", "{} Count the words and answer with a number."),
        _num_words,
    )


def _plain(draw: random.Random) -> str:
    first, second = draw.sample(THINGS, 2)
    form = draw.choice(["{name} put the {first} next to the {second}", "Every {first} here is {color}"])
    form = draw.choice([form, "The {first} and the {second} are {color}", "Nobody in {city} wants a {color} {second}"])
    return form.format(
        name=draw.choice(NAMES), first=first, second=second, color=draw.choice(COLORS), city=draw.choice(CITIES)
    )


def _last_word(draw: random.Random) -> Pair:
    sentence = _plain(draw)
    return f"{sentence}.", sentence.split()[-1]


def _num_words(draw: random.Random) -> Pair:
    sentence = _plain(draw) + draw.choice(["", " today", " in the evening", " again", " for a very good reason"])
    return f"{sentence}.", str(len(sentence.split()))
