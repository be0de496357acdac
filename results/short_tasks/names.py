"""Short tasks of the names of countries, languages, currencies and days, and of kinds of things."""

import random
from collections.abc import Iterable

from babel import Locale
from babel.numbers import get_territory_currencies
from num2words import num2words

from results.short_tasks.vocabulary import LANGUAGES, Task, territories, words

__all__ = ["of_kinds", "of_names"]


def of_names(_draw: random.Random) -> Iterable[Task]:
    english, countries = Locale("en"), territories("en")
    languages = {code: name for code, name in english.languages.items() if len(code) == 2}
    yield (
        "country_code",
        ("Write the two-letter code of the country.", "What is the country code?"),
        [(name, code) for code, name in countries.items()],
    )
    yield (
        "code_country",
        ("Which country has this code?", "Name the country."),
        [(code, name) for code, name in countries.items()],
    )
    yield (
        "country_flag",
        ("Write the flag of the country.", "Which flag does the country have?"),
        [(name, _flag(code)) for code, name in countries.items()],
    )
    yield (
        "flag_country",
        ("Which country has this flag?", "Name the country of the flag."),
        [(_flag(code), name) for code, name in countries.items()],
    )
    yield (
        "country_currency_code",
        ("Write the currency code.", "Which currency code is used there?"),
        [(name, next(iter(get_territory_currencies(code)[-1:]), "")) for code, name in countries.items()],
    )
    yield (
        "currency_symbol",
        ("Write the symbol of the currency.", "Which sign has the currency?"),
        [(name, english.currency_symbols.get(code, "")) for code, name in english.currencies.items()],
    )
    yield (
        "currency_code",
        ("What is the code of the currency?", "Abbreviate the currency."),
        [(name, code) for code, name in english.currencies.items()],
    )
    yield (
        "language_code",
        ("Write the code of the language.", "What is the two-letter language code?"),
        [(name, code) for code, name in languages.items()],
    )
    for code, language in LANGUAGES.items():
        there, names = Locale(code), territories(code)
        yield (
            f"country_{code}",
            (f"Translate the country to {language}.", f"How is it called in {language}?"),
            [(name, names.get(one, "")) for one, name in countries.items()],
        )
        yield (
            f"language_{code}",
            (f"Translate the language to {language}.", f"Write its name in {language}."),
            [(name, there.languages.get(one, "")) for one, name in languages.items()],
        )
        yield (
            f"calendar_{code}",
            (f"Translate the day or month to {language}.", f"What is it in {language}?"),
            [
                (name, getattr(there, kind)["format"]["wide"][one])
                for kind in ("months", "days")
                for one, name in getattr(english, kind)["format"]["wide"].items()
            ],
        )


def of_kinds(draw: random.Random) -> Iterable[Task]:
    vocabulary, countries = draw.sample(words(), 50), [*territories("en").values()]
    yield (
        "is_number",
        ("Is this a number or a word?", "Number or word?"),
        [
            *((word, "word") for word in vocabulary),
            *((str(number), "number") for number in draw.sample(range(999), 50)),
        ],
    )
    yield (
        "is_country",
        ("Is this a country or a language?", "Country or language?"),
        [
            *((name, "country") for name in draw.sample(countries, 50)),
            *((name, "language") for code, name in Locale("en").languages.items() if len(code) == 2),
        ],
    )
    yield (
        "number_language",
        ("Which language is this number in?", "Name the language of the number."),
        [
            (num2words(number, lang=code), language)
            for code, language in LANGUAGES.items()
            for number in draw.sample(range(11, 99), 10)
        ],
    )


def _flag(country: str) -> str:
    return "".join(chr(0x1F1E6 + ord(letter) - ord("A")) for letter in country)
