"""Short tasks of several languages: names, small sentences, numbers, dates and amounts as they are written there."""

import random
from collections.abc import Iterable
from datetime import date

from babel import Locale, UnknownLocaleError
from babel.dates import format_date
from babel.numbers import format_currency, format_decimal, get_territory_currencies
from num2words import num2words

from results.short_tasks.templates import Template, drawn, turned
from results.short_tasks.vocabulary import LANGUAGES, Pair, Task, territories

__all__ = ["of_translations"]

_MORE_LANGUAGES = LANGUAGES | {"fr": "French", "da": "Danish", "tr": "Turkish", "id": "Indonesian", "cs": "Czech"}
_WRITTEN_DIFFERENTLY = {"de": "German", "fr": "French", "en": "English", "es": "Spanish", "pl": "Polish"}
_GERMAN = {
    "the dog": "der Hund", "the cat": "die Katze", "the house": "das Haus", "the car": "das Auto",
    "the table": "der Tisch", "the lamp": "die Lampe", "the book": "das Buch", "the tree": "der Baum",
    "the door": "die Tür", "the ship": "das Schiff", "the apple": "der Apfel", "the bottle": "die Flasche",
}  # fmt: skip
_GERMAN_ADJECTIVES = {
    "big": "groß", "small": "klein", "old": "alt", "new": "neu", "red": "rot", "green": "grün", "black": "schwarz",
    "white": "weiß", "beautiful": "schön", "expensive": "teuer",
}  # fmt: skip
_SPANISH = {
    "the dog": "el perro", "the cat": "el gato", "the house": "la casa", "the car": "el coche",
    "the table": "la mesa", "the lamp": "la lámpara", "the book": "el libro", "the tree": "el árbol",
    "the door": "la puerta", "the boat": "el barco", "the apple": "la manzana", "the bottle": "la botella",
}  # fmt: skip
_SPANISH_ADJECTIVES = {
    "small": "pequeñ", "red": "roj", "black": "negr", "white": "blanc", "new": "nuev", "yellow": "amarill",
    "expensive": "car", "cheap": "barat", "round": "redond", "modern": "modern",
}  # fmt: skip
"""Without their last letter, which is o or a."""
_FRENCH = {
    "the dog": "le chien", "the cat": "le chat", "the car": "la voiture", "the table": "la table",
    "the lamp": "la lampe", "the book": "le livre", "the door": "la porte", "the boat": "le bateau",
    "the garden": "le jardin", "the bread": "le pain", "the key": "la clé", "the chair": "la chaise",
}  # fmt: skip
_FRENCH_PLACES = {
    "here": "ici", "in Paris": "à Paris", "on the table": "sur la table", "in the house": "dans la maison",
    "in the kitchen": "dans la cuisine", "in the street": "dans la rue", "behind the door": "derrière la porte",
}  # fmt: skip


def of_translations(draw: random.Random) -> Iterable[Task]:
    yield from _of_names()
    yield from drawn(draw, [*_of_sentences(), *_of_numbers(), *_of_formats()])


def _of_names() -> Iterable[Task]:
    english, countries = Locale("en"), territories("en")
    yield (
        "calendar_to_english",
        ("Translate the day or month to English.", "{}\nIn English, with a capital:"),
        [
            (f"{name} ({language})", getattr(english, kind)["format"]["wide"][one])
            for code, language in _MORE_LANGUAGES.items()
            for kind in ("months", "days")
            for one, name in getattr(Locale(code), kind)["format"]["wide"].items()
        ],
    )
    yield (
        "country_to_english",
        ("What is the English name of the country?", "Which country is {} in English?"),
        [
            (f"{name} ({language})", countries[one])
            for code, language in _MORE_LANGUAGES.items()
            for one, name in territories(code).items()
            if one in countries and name != countries[one]
        ],
    )
    yield (
        "language_own_name",
        ("What do its speakers call this language?", "Write the name of the language in the language itself."),
        [
            (name, own.languages.get(code, ""))
            for code, name in english.languages.items()
            if len(code) == 2 and (own := _locale(code)) is not None
        ],
    )
    yield (
        "country_currency",
        (
            "What is the currency of the country called?",
            "{}: name its money.",
            "With which currency do people pay in {}?",
        ),
        [
            (name, english.currencies.get(used[0], ""))
            for code, name in countries.items()
            if len(used := get_territory_currencies(code)) == 1
        ],
    )
    for code, language in (("de", "German"), ("es", "Spanish"), ("fr", "French")):
        there = Locale(code)
        yield (
            f"currency_{code}",
            (f"Translate the currency to {language}.", f"What is {{}} called in {language}?"),
            [(name, there.currencies.get(one, "")) for one, name in english.currencies.items() if "(" not in name],
        )


def _locale(code: str) -> Locale | None:
    try:
        return Locale(code)
    except UnknownLocaleError:
        return None


def _of_sentences() -> Iterable[Template]:
    yield (
        "sentence_to_german",
        ("Translate to German.", "{}\nThe same in German:", "How do you say this in German? {}"),
        _german,
    )
    yield "sentence_from_german", ("Translate to English.", "{}\nIn English:"), lambda draw: turned(_german(draw))
    yield (
        "sentence_to_spanish",
        ("Translate to Spanish with a form of ser.", "{}\nThe same in Spanish, with a form of ser:"),
        _spanish,
    )
    yield "sentence_to_french", ("Translate to French.", "{} In French:"), _french
    yield (
        "sentence_from_french",
        ("Translate from French.", "What does this mean in English? {}"),
        lambda draw: turned(_french(draw)),
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _german(draw: random.Random) -> Pair:
    noun, adjective = draw.choice([*_GERMAN]), draw.choice([*_GERMAN_ADJECTIVES])
    return _sentence(f"{noun} is {adjective}"), _sentence(f"{_GERMAN[noun]} ist {_GERMAN_ADJECTIVES[adjective]}")


def _spanish(draw: random.Random) -> Pair:
    noun, adjective = draw.choice([*_SPANISH]), draw.choice([*_SPANISH_ADJECTIVES])
    there = _SPANISH[noun]
    ending = "a" if there.startswith("la ") else "o"
    return _sentence(f"{noun} is {adjective}"), _sentence(f"{there} es {_SPANISH_ADJECTIVES[adjective]}{ending}")


def _french(draw: random.Random) -> Pair:
    noun, place = draw.choice([*_FRENCH]), draw.choice([*_FRENCH_PLACES])
    return _sentence(f"{noun} is {place}"), _sentence(f"{_FRENCH[noun]} est {_FRENCH_PLACES[place]}")


def _of_numbers() -> Iterable[Template]:
    yield (
        "number_words_any",
        ("Write the number in words of the language in brackets.", "{}\nIn words of that language:"),
        _number_in_words,
    )
    yield (
        "number_from_words_any",
        ("Write the number in digits.", "{} in digits:", "Which number is {}?"),
        _number_from_words,
    )
    yield "year_words", ("Say the year in words.", "How is the year {} read aloud?"), _year
    yield "decimal_words", ("Write the decimal number in words.", "As 1.5 is one point five, {} is"), _decimal
    yield (
        "amount_words",
        ("Write the amount in words.", "{}\nIn words, like two dollars, five cents:"),
        _amount,
    )


def _number_in_words(draw: random.Random) -> Pair:
    code = draw.choice([*_MORE_LANGUAGES])
    number = draw.randint(1, 40)
    return f"{number} ({_MORE_LANGUAGES[code]})", num2words(number, lang=code)


def _number_from_words(draw: random.Random) -> Pair:
    code, number = draw.choice([*_MORE_LANGUAGES]), draw.randint(11, 99)
    return f"{num2words(number, lang=code)} ({_MORE_LANGUAGES[code]})", str(number)


def _year(draw: random.Random) -> Pair:
    year = draw.randint(1100, 1999)
    return str(year), num2words(year, to="year")


def _decimal(draw: random.Random) -> Pair:
    number = f"{draw.randint(1, 99)}.{draw.randint(1, 9)}"
    return number, num2words(float(number))


def _amount(draw: random.Random) -> Pair:
    amount = draw.randint(2, 60) + draw.randint(2, 99) / 100
    return f"${amount:.2f}", num2words(amount, to="currency", currency="USD")


def _of_formats() -> Iterable[Template]:
    yield (
        "date_in_language",
        (
            "Write the date out in the language in brackets, with the name of the month.",
            "{}\nThe date in that language, the month as a word:",
        ),
        _date_in_language,
    )
    yield (
        "date_language",
        ("Which language is the date in?", "{}\nLanguage of this date:"),
        _language_of_date,
    )
    yield (
        "decimal_german",
        ("Write the number the German way.", "As 1,234.5 is 1.234,5 in Germany, write {}"),
        _german_decimal,
    )
    yield (
        "amount_german",
        ("Write the amount as in Germany.", "As $2.50 is 2,50 $ in Germany, write {}"),
        _german_amount,
    )


def _day(draw: random.Random) -> date:
    return date(draw.randint(1960, 2028), draw.randint(1, 12), draw.randint(2, 28))


def _date_in_language(draw: random.Random) -> Pair:
    code, day = draw.choice(["de", "es", "fr", "it", "nl"]), _day(draw)
    return f"{day} ({_MORE_LANGUAGES[code]})", format_date(day, format="long", locale=code)


def _language_of_date(draw: random.Random) -> Pair:
    code = draw.choice([*_WRITTEN_DIFFERENTLY])
    return format_date(_day(draw), format="full", locale=code), _WRITTEN_DIFFERENTLY[code]


def _german_decimal(draw: random.Random) -> Pair:
    number = draw.randint(10_000, 9_999_999) / 100
    return format_decimal(number, locale="en"), format_decimal(number, locale="de")


def _german_amount(draw: random.Random) -> Pair:
    amount, currency = draw.randint(100, 999_999) / 100, draw.choice(["EUR", "USD", "GBP"])
    there = format_currency(amount, currency, locale="de").replace("\xa0", " ")
    return format_currency(amount, currency, locale="en"), there
