"""Short tasks of words, lists of words, and grammar."""

import random
from collections.abc import Callable, Iterable, Sequence

import inflect
from lemminflect import getAllLemmas, getInflection

from results.short_tasks.vocabulary import Task, territories, words, yes

__all__ = ["of_grammar", "of_lists", "of_words"]

_VOWELS = "aeiou"
_COLORS = ["red", "blue", "green", "yellow", "purple", "orange", "brown", "black", "white", "pink", "gray", "violet"]


def of_words(draw: random.Random) -> Iterable[Task]:
    rules: list[tuple[str, tuple[str, ...], Callable[[str], object]]] = [
        ("upper", ("Write the word in capital letters.", "Put all letters in upper case."), str.upper),
        ("title", ("Make the word start with a capital.", "Write the word as in a title."), str.title),
        ("reverse", ("Write the word backwards.", "Spell the word in reverse."), lambda word: word[::-1]),
        ("first_letter", ("What is the first letter of the word?", "Give the first letter."), lambda word: word[0]),
        ("last_letter", ("What letter does the word end with?", "Give the final letter."), lambda word: word[-1]),
        ("third_letter", ("Write the third letter of the word.", "What is the third character?"), lambda word: word[2]),
        ("length", ("How many letters does the word have?", "Count the letters of the word."), len),
        (
            "num_vowels",
            ("How many vowels are in the word?", "Count the vowels."),
            lambda word: sum(c in _VOWELS for c in word),
        ),
        (
            "first_two",
            ("Write the first two letters of the word.", "What two letters come first?"),
            lambda word: word[:2],
        ),
        (
            "last_two",
            ("Write the last two letters of the word.", "What two letters come last?"),
            lambda word: word[-2:],
        ),
        ("no_vowels", ("Remove all vowels from the word.", "Write the word without its vowels."), _without_vowels),
        ("drop_first", ("Remove the first letter.", "Write the word without its first letter."), lambda word: word[1:]),
        ("drop_last", ("Remove the last letter.", "Write the word without its final letter."), lambda word: word[:-1]),
        ("double_first", ("Write the first letter twice.", "Double the first letter."), lambda word: word[0] + word),
        (
            "sort_letters",
            ("Sort the letters of the word.", "Put the letters in order."),
            lambda word: "".join(sorted(word)),
        ),
        ("dashes", ("Put a dash between all letters.", "Spell the word with dashes."), "-".join),
        ("spaces", ("Put spaces between the letters.", "Spell the word out."), " ".join),
        ("twice", ("Repeat the word twice.", "Say the word two times."), lambda word: f"{word} {word}"),
        ("quotes", ("Put the word in quotation marks.", "Quote the word."), lambda word: f'"{word}"'),
        ("exclaim", ("Add an exclamation mark.", "Shout the word."), lambda word: f"{word}!"),
        (
            "starts",
            ("Does the word begin with a vowel or a consonant?", "Vowel or consonant first?"),
            _vowel_or_consonant,
        ),
        (
            "has_e",
            ("Does the word contain the letter e?", "Is there an e? Say yes or no."),
            lambda word: yes("e" in word),
        ),
        ("e_to_x", ("Replace every e by x.", "Write x in place of e."), lambda word: word.replace("e", "x")),
        ("pig_latin", ("Say the word in pig latin.", "Translate the word to pig latin."), _pig_latin),
        ("un", ("Put un in front of the word.", "Add the prefix un."), lambda word: f"un{word}"),
        ("ness", ("Add the suffix ness.", "Put ness at the end of the word."), lambda word: f"{word}ness"),
        ("article", ("Put a or an before the word.", "Write the word with its article."), inflect.engine().a),
        (
            "alphabet",
            ("What number in the alphabet is the first letter?", "Where in the alphabet?"),
            lambda word: ord(word[0]) - 96,
        ),
        (
            "is_long",
            ("Say long if the word has over six letters, else short.", "Is the word long or short?"),
            _long_or_short,
        ),
    ]
    vocabulary = words()
    for name, instructions, rule in rules:
        yield f"word_{name}", instructions, [(word, str(rule(word))) for word in draw.sample(vocabulary, 100)]


def _without_vowels(word: str) -> str:
    return "".join(letter for letter in word if letter not in _VOWELS)


def _vowel_or_consonant(word: str) -> str:
    return "vowel" if word[0] in _VOWELS else "consonant"


def _pig_latin(word: str) -> str:
    return f"{word}way" if word[0] in _VOWELS else f"{word[1:]}{word[0]}ay"


def _long_or_short(word: str) -> str:
    return "long" if len(word) > 6 else "short"


def of_lists(draw: random.Random) -> Iterable[Task]:
    rules: list[tuple[str, int, tuple[str, ...], Callable[[list[str]], object]]] = [
        ("longest", 3, ("Choose the longest word.", "Which word has most letters?"), lambda items: max(items, key=len)),
        (
            "shortest",
            3,
            ("Choose the shortest word.", "Which word has fewest letters?"),
            lambda items: min(items, key=len),
        ),
        ("alphabet_last", 3, ("Which word comes last in the alphabet?", "Choose the alphabetically last."), max),
        ("second", 5, ("Repeat only the second item.", "Choose the second item."), lambda items: items[1]),
        ("third", 4, ("Repeat only the third item.", "Choose the third item."), lambda items: items[2]),
        ("acronym", 4, ("Make an acronym of the words.", "Write the first letters as capitals."), _acronym),
        ("hyphen", 2, ("Join the words by a hyphen.", "Put a hyphen between the words."), "-".join),
        (
            "swap",
            2,
            ("Swap the two words.", "Write the words in the other order."),
            lambda items: ", ".join(items[::-1]),
        ),
        (
            "backwards",
            3,
            ("Reverse the list.", "Write the items from last to first."),
            lambda items: ", ".join(items[::-1]),
        ),
        (
            "sort",
            3,
            ("Sort the words.", "Put the list into alphabetical order."),
            lambda items: ", ".join(sorted(items)),
        ),
        ("rest", 3, ("Remove the first item.", "Write all items but the first."), lambda items: ", ".join(items[1:])),
        ("and", 3, ("Write and before the last item.", "Turn the list into a phrase with and."), _with_and),
        ("same_length", 2, ("Are the words equally long?", "Same number of letters? Say yes or no."), _same_length),
    ]
    vocabulary = words()
    for name, size, instructions, rule in rules:
        lists = [draw.sample(vocabulary, size) for _ in range(100)]
        yield f"list_{name}", instructions, [(", ".join(items), str(rule(items))) for items in lists]
    counted = [draw.sample(vocabulary, draw.randint(2, 7)) for _ in range(100)]
    pairs = [(", ".join(items), str(len(items))) for items in counted]
    yield "list_count", ("How many items are there?", "Count the items of the list."), pairs
    odd_ones: list[tuple[str, int, tuple[str, ...], Sequence[str]]] = [
        ("country", 4, ("Find the country.", "Which of these is a country?"), [*territories("en").values()]),
        ("number", 3, ("Find the number in the list.", "Which item is a number?"), [*map(str, range(2, 999))]),
        ("color", 5, ("Find the color.", "Which of these is a color?"), _COLORS),
        (
            "capitals",
            4,
            ("Find the word in capitals.", "Which is in upper case?"),
            [word.upper() for word in vocabulary],
        ),
    ]
    for name, size, instructions, wanted in odd_ones:
        pairs = []
        for _ in range(100):
            answer = draw.choice(wanted)
            items = [*draw.sample(vocabulary, size - 1), answer]
            draw.shuffle(items)
            pairs.append((", ".join(items), answer))
        yield f"find_{name}", instructions, pairs


def _acronym(items: list[str]) -> str:
    return "".join(item[0] for item in items).upper()


def _with_and(items: list[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}"


def _same_length(items: list[str]) -> str:
    return yes(len({*map(len, items)}) == 1)


def of_grammar(draw: random.Random) -> Iterable[Task]:
    kinds = {word: getAllLemmas(word) for word in words()}
    verbs = [word for word, lemmas in kinds.items() if word in lemmas.get("VERB", ())]
    nouns = [word for word, lemmas in kinds.items() if word in lemmas.get("NOUN", ()) and word not in verbs]
    # Long ones are compared by more and most.
    adjectives = [word for word, lemmas in kinds.items() if lemmas == {"ADJ": (word,)} and len(word) > 6]
    engine = inflect.engine()

    def form(word: str, tag: str) -> str:
        return next(iter(getInflection(word, tag)), "")

    yield (
        "verb_ing",
        ("Write the -ing form of the verb.", "Give the present participle."),
        [(verb, form(verb, "VBG")) for verb in verbs],
    )
    yield (
        "verb_third",
        ("Write the verb for he or she.", "Put the verb into the third person."),
        [(verb, form(verb, "VBZ")) for verb in verbs],
    )
    yield (
        "verb_base",
        ("Write the base form of the verb.", "What is the infinitive?"),
        [(form(verb, "VBG"), verb) for verb in verbs],
    )
    yield (
        "verb_future",
        ("Put the verb into the future.", "Write the verb with will."),
        [(verb, f"will {verb}") for verb in verbs],
    )
    yield (
        "verb_not",
        ("Negate the verb.", "Write the verb in the negative."),
        [(verb, f"do not {verb}") for verb in verbs],
    )
    plurals = [(noun, engine.plural(noun)) for noun in nouns]
    yield "noun_plural", ("Write the plural of the noun.", "Put the noun into the plural."), plurals
    yield (
        "noun_singular",
        ("Write the singular of the noun.", "What is one of these called?"),
        [(plural, noun) for noun, plural in plurals],
    )
    yield (
        "noun_possessive",
        ("Write the possessive of the noun.", "Put the noun into the possessive."),
        [(noun, f"{noun}'s") for noun in nouns],
    )
    yield (
        "noun_the",
        ("Put the before the noun.", "Write the definite article."),
        [(noun, f"the {noun}") for noun in nouns],
    )
    for name, more in (("comparative", "more"), ("superlative", "most")):
        yield (
            f"adjective_{name}",
            (f"Write the {name} of the adjective.", f"What is the {name}?"),
            [(adjective, f"{more} {adjective}") for adjective in adjectives],
        )
    yield (
        "adjective_very",
        ("Strengthen the adjective.", "Put very before the adjective."),
        [(adjective, f"very {adjective}") for adjective in adjectives],
    )
    groups = {"verb": verbs, "noun": nouns, "adjective": adjectives}
    yield (
        "part_of_speech",
        ("What part of speech is the word?", "Noun, verb or adjective?"),
        [(word, kind) for kind, words in groups.items() for word in draw.sample(words, min(40, len(words)))],
    )
