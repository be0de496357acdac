"""Generators of reasoning-gym with settings: what is written is what is set, and what cannot be set is one sentence."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loragen_train import LoragenTrainError
from loragen_train.configs.collect import check_task_names
from loragen_train.configs.prepare import PrepareConfig
from loragen_train.prompts import drawing
from loragen_train.prompts.combine import prepare
from loragen_train.prompts.generators import draw, parse_settings
from loragen_train.prompts.sources import Source, read_samples

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
)


def prompts_of(location: str, *, num_samples: int = 20) -> list[str]:
    samples = read_samples(Source(location=location), num_samples=num_samples, seed=1, purpose="collect")
    return [sample.prompt for sample in samples.by_place.values()]


@given(settings=st.dictionaries(st.text(min_size=1), JSON))
def test_json_values_come_back_as_they_were_written(settings):
    query = "&".join(f"{quote(name, safe='')}={quote(json.dumps(value), safe='')}" for name, value in settings.items())
    assert parse_settings(query, "x") == settings


@given(name=st.text(min_size=1), text=st.text())
def test_what_is_not_json_is_text(name, text):
    (value,) = parse_settings(f"{quote(name, safe='')}={quote(text, safe='')}", "x").values()
    assert value == text or json.loads(text) == value


@given(query=st.text(st.sampled_from("ab=&?%[]{}1.eN\"'+ -"), max_size=20))
def test_any_text_is_settings_or_one_sentence(query):
    try:
        settings = parse_settings(query, "the source")
    except LoragenTrainError as error:
        assert str(error).startswith("the source")  # noqa: PT017
    else:
        assert len(settings) == (query.count("&") + 1 if query else 0)


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "True", "+", "1" * 5000, "[" * 100_000, "a=b"])
def test_words_that_json_does_not_know_stay_text(text):
    assert parse_settings(f"x={text}", "x") == {"x": text}


def test_settings_make_another_task_of_a_generator():
    plain = prompts_of("reasoning-gym:gcd")
    three = prompts_of("reasoning-gym:gcd?min_numbers=3&max_numbers=3&max_value=50")
    assert three == prompts_of("reasoning-gym:gcd?max_value=50&min_numbers=3&max_numbers=3")
    assert not set(three) & set(plain)
    for prompt in three:
        numbers = [int(number) for number in re.findall(r"\d+", prompt)]
        assert len(numbers) == 3
        assert max(numbers) <= 50
    assert all("+" in prompt for prompt in prompts_of('reasoning-gym:basic_arithmetic?operators=["+"]', num_samples=5))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("max_number=3", r"^reasoning-gym:gcd\?max_number=3: gcd has no setting 'max_number'; did you mean 'max_num"),
        ("zzz=3", r"gcd has no setting 'zzz'; it has min_numbers, max_numbers, min_value, max_value\.$"),
        ("seed=3", "gcd has no setting 'seed'"),
        ("size=3", "gcd has no setting 'size'"),
        ("max_numbers=1", r"^reasoning-gym:gcd\?max_numbers=1 cannot be drawn from: max_numbers must be >= min_n"),
        ("max_numbers=many", "cannot be drawn from: '>=' not supported"),
        ("max_value", r"^reasoning-gym:gcd\?max_value: 'max_value' is no setting; write NAME=VALUE"),
        ("max_value=5&", "'' is no setting"),
        ("max_value=5&max_value=5", "gives the setting 'max_value' twice; remove one"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(query, message):
    with pytest.raises(LoragenTrainError, match=message) as caught:
        prompts_of(f"reasoning-gym:gcd?{query}")
    assert "\n" not in str(caught.value)


def test_prepare_tells_settings_from_a_name(tmp_path):
    sources = ["reasoning-gym:gcd?max_value=50", "small=reasoning-gym:gcd?max_value=9&min_value=2"]
    manifest = prepare(sources, PrepareConfig(output_dir=str(tmp_path), num_samples=8))
    assert {name: task["source"] for name, task in manifest["tasks"].items()} == {
        "gcd-max_value-50": "reasoning-gym:gcd?max_value=50",
        "small": "reasoning-gym:gcd?max_value=9&min_value=2",
    }


def test_an_unknown_generator_with_settings_is_named_without_them():
    with pytest.raises(LoragenTrainError, match=r"^reasoning-gym has no task 'gdc'; did you mean 'gcd'\?\.$"):
        prompts_of("reasoning-gym:gdc?max_value=3")


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("reasoning-gym:gcd", "gcd"),
        ("reasoning-gym:gcd?max_numbers=3&max_value=50", "gcd-max_numbers-3-max_value-50"),
        ('reasoning-gym:basic_arithmetic?operators=["/"]', "basic_arithmetic-operators"),
        ("hf:org/quiz/easy/", "easy"),
        ("lm-eval:arc_easy", "arc_easy"),
        ("lm-eval:my/tasks/riddles.yaml", "riddles"),
        ("my/sums.jsonl", "sums"),
    ],
)
def test_a_task_without_a_name_is_called_after_its_source(location, name):
    assert Source(location=location).default_task == name
    check_task_names([name])


# Of these, the first two go through sets of texts, and the third takes Python's global random numbers.
UNSTEADY = ("word_ladder?min_word_length=3&max_word_length=3", "isomorphic_strings", "list_functions", "gcd")


def test_a_seed_gives_the_same_samples_in_every_process():
    code = (
        "import json, sys; from loragen_train.prompts.generators import draw\n"
        "print(json.dumps([list(draw(name, size=70, seed=5)) for name in sys.argv[1:]]))"
    )
    drawn = [
        subprocess.run(
            [sys.executable, "-c", code, *names],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed, names in (("1", UNSTEADY), ("2", UNSTEADY))
    ]
    first, second = map(json.loads, drawn)
    assert first == second
    assert [len(rows) for rows in first] == [70] * len(UNSTEADY)


def test_drawings_do_not_disturb_each_other_nor_the_random_numbers_of_the_caller(capfd):
    alone = {name: list(draw(name, size=150, seed=2)) for name in UNSTEADY}
    random.seed(7)
    before = random.getstate()
    turns = zip(*(draw(name, size=150, seed=2) for name in UNSTEADY), strict=True)
    together = dict(zip(UNSTEADY, zip(*turns, strict=True), strict=True))
    assert {name: list(rows) for name, rows in together.items()} == alone
    assert random.getstate() == before
    assert capfd.readouterr().out == ""


def test_a_process_that_has_ended_is_told_and_the_next_one_draws():
    expected = list(draw("gcd", size=3, seed=0))
    drawing._drawer()._process.send_signal(signal.SIGALRM)  # as one ends that nobody has asked for long
    assert list(draw("gcd", size=3, seed=0)) == expected
    drawing._drawer()._process.kill()
    with pytest.raises(LoragenTrainError, match="cannot be drawn from: the process that draws has ended with exit"):
        list(draw("gcd", size=3, seed=0))
    assert list(draw("gcd", size=3, seed=0)) == expected
