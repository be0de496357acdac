"""Samples as a training sees them: what is too long is an error, left out, or loses the end of its prompt."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loragen_infer.samples import Example, tokenize_example
from loragen_train import LoragenTrainError
from loragen_train.configs.collect import CollectConfig, CollectTask, LoraTraining
from loragen_train.zoo.items import tokenize_task
from transformers import AutoTokenizer, PreTrainedTokenizerBase

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60).filter(
    str.strip
)


@pytest.fixture(scope="module", params=[None, TEMPLATE], ids=["plain", "chat"])
def tokenizer(tiny_lm, request) -> PreTrainedTokenizerBase:
    """One token a byte, so that a character may be cut in two."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    tokenizer.chat_template = request.param
    return tokenizer


def config_of(**training: object) -> CollectConfig:
    values = {"max_steps": 2, "save_every": 1, **training}
    return CollectConfig(base_model="x", tasks=[CollectTask(name="task", source="x")], training=LoraTraining(**values))


def tokenize(config: CollectConfig, tokenizer, folder, make, samples: list[Example]):
    rows = [{"prompt": sample.prompt, "response": sample.response} for sample in samples]
    for part in ("train", "test"):
        make.rows(folder / part / "task.jsonl", rows)
    return tokenize_task(config.tasks[0], config, folder, tokenizer)


@given(prompt=TEXT, response=TEXT, max_length=st.integers(1, 120))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cut_sample_is_within_the_limit_and_keeps_its_response(
    tokenizer, tmp_path, make, prompt, response, max_length
):
    sample = Example(prompt=prompt, response=response)
    whole = tokenize_example(tokenizer, sample)
    config = config_of(max_length=max_length, too_long="truncate")
    try:
        (item,) = tokenize(config, tokenizer, tmp_path, make, [sample]).train
    except LoragenTrainError as refused:
        error = str(refused)
    else:
        error = None
    if error is not None:
        assert len(whole.input_ids) > max_length
        assert f"row 1 leaves no room for a prompt within {max_length} tokens" in error
        return
    assert len(item.input_ids) <= max_length
    assert item.response_ids == whole.response_ids
    if len(whole.input_ids) <= max_length:
        assert item == whole
    else:
        # What is left of it is its beginning; of a character in two halves, none or a sign that it was cut.
        kept = tokenizer.decode(item.input_ids[: item.num_prompt_tokens])
        kept = kept.removeprefix("[user]").removesuffix("</s>[assistant]").removesuffix("\n").rstrip("\ufffd")
        assert prompt.startswith(kept)


def test_the_longest_that_fits_is_kept_as_it_is(tokenizer, tmp_path, make):
    samples = [Example(prompt="x" * number, response="yes") for number in (30, 5, 31, 8)]
    whole = [tokenize_example(tokenizer, sample) for sample in samples]
    limit = len(whole[0].input_ids)
    dropped = tokenize(config_of(max_length=limit, too_long="drop"), tokenizer, tmp_path, make, samples)
    assert dropped.train == dropped.test == [whole[0], whole[1], whole[3]]
    with pytest.raises(LoragenTrainError, match=rf"train/task\.jsonl, row 3 has {limit + 1} tokens, over training"):
        tokenize(config_of(max_length=limit), tokenizer, tmp_path, make, samples)
    cut = tokenize(config_of(max_length=limit, too_long="truncate"), tokenizer, tmp_path, make, samples)
    assert cut.train == [whole[0], whole[1], whole[0], whole[3]]


def test_nothing_left_is_an_error(tokenizer, tmp_path, make):
    samples = [Example(prompt="x" * 30, response="yes")]
    with pytest.raises(LoragenTrainError, match=r"task\.jsonl has no sample of at most 10 tokens; raise training\.max"):
        tokenize(config_of(max_length=10, too_long="drop"), tokenizer, tmp_path, make, samples)


def test_what_is_too_long_decides_the_weights_but_an_old_zoo_goes_on(tokenizer, tmp_path, make):
    samples = [Example(prompt="x", response="yes")]

    def decided_by(**training: object):
        return tokenize(config_of(**training), tokenizer, tmp_path, make, samples).decided_by

    plain = decided_by()
    assert "too_long" not in plain["settings"]["training"]
    assert decided_by(too_long="drop") != plain
    same = {"adapters_at_once": 3, "tokens_per_pass": 9, "gradient_checkpointing": True, "device_map": "auto"}
    assert decided_by(**same) == plain
