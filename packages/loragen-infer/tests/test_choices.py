"""Where choices come from, which are refused, and how a model picks one."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
import torch
from loragen_infer import LoragenInferError
from loragen_infer.evaluation.config import EvaluateTask
from loragen_infer.evaluation.examples import TestExample, read_test_examples
from loragen_infer.evaluation.scoring import Scorer
from loragen_infer.samples import Example, tokenize_example

REAL_DATA = os.environ.get("LORAGEN_TEST_DATA")
needs_real_data = pytest.mark.skipif(REAL_DATA is None, reason="LORAGEN_TEST_DATA is not set")


def task(path, **options):
    return EvaluateTask(name="t", test=str(path), prompts="unused", **options)


def test_choices_come_from_the_column_the_task_or_the_prompt(make, tmp_path):
    column = make.rows(tmp_path / "a.jsonl", [{"prompt": "p", "response": "no", "choices": ["yes", "no"]}])
    assert read_test_examples(task(column))[0].choices == ("yes", "no")
    plain = make.rows(tmp_path / "b.jsonl", [{"prompt": "p", "response": "no"}])
    assert read_test_examples(task(plain))[0].choices == ()
    assert read_test_examples(task(plain, choices=["no", "maybe"]))[0].choices == ("no", "maybe")
    lettered = make.rows(tmp_path / "c.jsonl", [{"prompt": "which?\nA: {x}\nB: y\nC: A: z", "response": "<B>"}])
    found = read_test_examples(task(lettered, choice_pattern=r"^(\w): ", choice_format="<{}>"))
    assert found[0].choices == ("<A>", "<B>", "<C>")
    assert [answer.response for answer in found[0].answers] == ["<B>", "<A>", "<C>"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"response": "no", "choices": ["yes", "perhaps"]}], "row 1: the response 'no' is none of the choices 'yes'"),
        ([{"response": "no", "choices": "no"}], "row 1: choices holds 'no', but must be a list of texts"),
        ([{"response": "no", "choices": ["no", 3]}], "must be a list of texts"),
        ([{"response": "no", "choices": ["no", " "]}], "must be a list of texts"),
        ([{"response": "no", "choices": ["no"]}], "there must be two or more, all different"),
        ([{"response": "no", "choices": ["no", "no"]}], "there must be two or more, all different"),
        ([{"response": "no", "choices": ["no", "yes"]}, {"response": "no"}], "row 2 has no choices, but others have"),
    ],
)
def test_bad_choices_are_named(rows, message, make, tmp_path):
    path = make.rows(tmp_path / "bad.jsonl", [{"prompt": "p", **row} for row in rows])
    with pytest.raises(LoragenInferError, match=message):
        read_test_examples(task(path))


def test_a_pattern_that_finds_nothing_and_a_single_choice_are_named(make, tmp_path):
    path = make.rows(tmp_path / "x.jsonl", [{"prompt": "no letters", "response": "A"}])
    with pytest.raises(
        LoragenInferError, match=r"choices of the task 't' holds \['A'\], but there must be two or more"
    ):
        read_test_examples(task(path, choices=["A"]))
    with pytest.raises(LoragenInferError, match=r"choice_pattern .* finds \[\], but there must be two or more"):
        read_test_examples(task(path, choice_pattern=r"^(\w): "))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choices": ["a", "b"], "choice_pattern": "(a)"}, "has both choices and choice_pattern"),
        ({"choice_pattern": "a("}, "choice_pattern 'a\\('"),
        ({"choice_pattern": "a"}, "choice_pattern 'a'; put one group in it"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(LoragenInferError, match=message):
        task("x", **options)


def likeliest(model, tokenizer, prompt, choices):
    """The choice of least mean negative log-likelihood per token, one by one and from the probabilities."""

    def nll(choice):
        item = tokenize_example(tokenizer, Example(prompt=prompt, response=choice))
        with torch.inference_mode():
            probabilities_SV = torch.softmax(model(torch.tensor([item.input_ids])).logits[0].double(), dim=-1)
        places = range(item.num_prompt_tokens, len(item.input_ids))
        return sum(-torch.log(probabilities_SV[place - 1, item.input_ids[place]]).item() for place in places) / len(
            places
        )

    return min(choices, key=nll)


@pytest.mark.parametrize("tokens_per_pass", [1, 120, 2500])
def test_accuracy_is_the_share_of_answers_that_are_the_likeliest_choice(tokens_per_pass, make, llama):
    tokenizer = make.tokenizer(template=True)
    choices = ("a", "bc", "no way at all", "zz top")
    examples = [
        TestExample(prompt=f"question {number}", response=choices[number % 4], choices=choices) for number in range(24)
    ]
    expected = [likeliest(llama, tokenizer, e.prompt, choices) == e.response for e in examples]
    scores = Scorer(tokenizer, examples, tokens_per_pass=tokens_per_pass).score(llama)
    assert list(scores.correct) == expected
    assert 0 < sum(expected) < 24
    # The other scores are those of the responses alone.
    plain = Scorer(
        tokenizer, [dataclasses.replace(example, choices=()) for example in examples], tokens_per_pass=tokens_per_pass
    ).score(llama)
    assert plain.correct is None
    assert scores.nll == pytest.approx(plain.nll, rel=1e-6)
    assert scores.exact == plain.exact
    assert scores.num_tokens == plain.num_tokens


def test_a_model_that_prefers_nothing_gets_nothing_right(make, llama):
    import copy

    flat = copy.deepcopy(llama)
    torch.nn.init.zeros_(flat.lm_head.weight)
    examples = [
        TestExample(prompt="p", response="a", choices=("a", "b")),
        TestExample(prompt="p", response="b", choices=("a", "b")),
    ]
    assert Scorer(make.tokenizer(), examples, tokens_per_pass=160).score(flat).correct == (False, False)


def test_solved_examples_come_first_and_count_as_prompt(make):
    shots = [Example(prompt="1+1", response="2"), Example(prompt="2+2", response="4")]
    example = Example(prompt="3+3", response="6")
    plain, template = make.tokenizer(), make.tokenizer(template=True)
    item = tokenize_example(plain, example, shots=shots)
    assert plain.decode(item.input_ids[: item.num_prompt_tokens]) == "1+1\n2\n\n2+2\n4\n\n3+3\n"
    item = tokenize_example(template, example, shots=shots)
    prompt = template.decode(item.input_ids[: item.num_prompt_tokens])
    assert prompt == "[user]1+1[assistant]2[user]2+2[assistant]4[user]3+3[assistant]"
    assert template.decode(item.input_ids[item.num_prompt_tokens :]) == "6</s>"


@needs_real_data
@pytest.mark.parametrize(
    ("name", "options", "least", "most"),
    [
        ("arc-challenge", {"choice_pattern": r"^([A-E1-5]): ", "choice_format": "[{}]"}, 3, 5),
        ("openbookqa", {"choice_pattern": r"^([A-E1-5]): ", "choice_format": "[{}]"}, 4, 4),
        ("boolq", {"choices": ["[True]", "[False]"]}, 2, 2),
    ],
)
def test_the_choices_of_real_data_sets_are_found(name, options, least, most):
    path = Path(REAL_DATA) / f"{name}_test_formatted.jsonl"
    found = read_test_examples(task(path, **options))
    assert len(found) == len(path.read_text(encoding="utf-8").splitlines())
    assert {least, most} <= {len(example.choices) for example in found} <= set(range(least, most + 1))
    by_eye = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert found[0].response == by_eye["response"]
    assert re.fullmatch(r"\[\w+\]", found[0].choices[0])
