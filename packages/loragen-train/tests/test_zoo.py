"""The zoo as tokens: one layout for all, tasks that match their prompts, and errors that name the checkpoint."""

import pytest
import torch
from lora_tokenizer import LoraTokenizerError, read_adapter, write_adapter
from loragen_infer import LoragenInferError
from loragen_train import LoragenTrainError
from loragen_train.config import DataConfig, ModelConfig, TaskConfig
from loragen_train.zoo import read_prompts, read_zoo

MODEL = ModelConfig(output_dim=16)


def data_config(values: dict, **changes: object) -> DataConfig:
    return DataConfig(**{**values, "tasks": [TaskConfig(**task) for task in values["tasks"]], **changes})


def test_all_checkpoints_of_all_tasks_share_a_layout_and_come_back(tmp_path, make):
    data = data_config(make.zoo(tmp_path))
    zoo = read_zoo(data, MODEL, ["sums", "spelling"])
    assert zoo.layout.grid == (3, 14, 16)
    assert zoo.tasks == ["sums", "sums", "spelling", "spelling"]
    assert zoo.tokens.shape == (4, 42, 16)
    assert zoo.tokens.dtype == torch.float32
    files = [tmp_path / "adapters" / task / f"checkpoint-{n}" for task in ("sums", "spelling") for n in (1, 2)]
    for tokens, file in zip(zoo.tokens, files, strict=True):
        back = zoo.layout.decode(zoo.stats.denormalize(tokens))
        for name, value in read_adapter(file).tensors.items():
            torch.testing.assert_close(back.tensors[name], value)


def test_targets_are_z_scores(tmp_path, make):
    zoo = read_zoo(data_config(make.zoo(tmp_path)), MODEL, ["sums", "spelling"])
    mask = zoo.layout.mask()
    torch.testing.assert_close(zoo.tokens.mean(0)[mask], torch.zeros(mask.sum()), atol=1e-4, rtol=0)
    torch.testing.assert_close(zoo.tokens.std(0, correction=0)[mask], torch.ones(mask.sum()), atol=1e-3, rtol=0)


def test_the_last_checkpoints_are_the_last_by_number(tmp_path, make):
    values = make.zoo(tmp_path, tasks=("sums",), num_checkpoints=12)
    zoo = read_zoo(data_config(values, max_checkpoints=3), MODEL, ["sums"])
    for tokens, number in zip(zoo.tokens, (10, 11, 12), strict=True):
        want = read_adapter(tmp_path / "adapters" / "sums" / f"checkpoint-{number}")
        torch.testing.assert_close(zoo.stats.denormalize(tokens), zoo.layout.encode(want))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 3}, r"has the shape \(3, 32\) where the layout has \(2, 32\)"),
        ({"width": 48}, "has the shape .*48.* where the layout has "),
        ({"lora_alpha": 8}, "has the alpha 8 where the layout has 4"),
        ({"num_layers": 2}, "lacks tensor .*layers.2"),
        ({"num_layers": 4}, "layers.3.* is not in the layout"),
    ],
)
def test_a_checkpoint_unlike_the_first_is_named(tmp_path, make, changes, message):
    values = make.zoo(tmp_path)
    write_adapter(make.adapter(0, **changes), tmp_path / "adapters" / "spelling" / "checkpoint-9")
    with pytest.raises(
        LoragenTrainError, match=rf"spelling/checkpoint-9 differs from .*sums/checkpoint-1, .*{message}"
    ):
        read_zoo(data_config(values), MODEL, ["sums", "spelling"])


def test_an_adapter_over_the_limit_is_an_error_that_says_what_would_fit(tmp_path, make):
    data = data_config(make.zoo(tmp_path))
    with pytest.raises(LoragenTrainError, match=r"sums/checkpoint-1 does not fit model\.max_seq_len=41 .*42"):
        read_zoo(data, ModelConfig(output_dim=16, max_seq_len=41), ["sums", "spelling"])
    for enough in (42, "auto"):
        zoo = read_zoo(data, ModelConfig(output_dim=16, max_seq_len=enough), ["sums", "spelling"])
        assert zoo.layout.num_tokens == 42


def test_a_task_without_prompts_is_named(tmp_path, make):
    data = data_config(make.zoo(tmp_path))
    with pytest.raises(LoragenTrainError, match=r"The task 'spelling' of data\.tasks has no prompts in .*data .*sums"):
        read_zoo(data, MODEL, ["sums"])


def test_prompts_without_a_task_are_named(tmp_path, make):
    data = data_config(make.zoo(tmp_path))
    with pytest.raises(LoragenTrainError, match=r"have a task 'capitals' that data\.tasks \(with spelling, sums\)"):
        read_zoo(data, MODEL, ["sums", "spelling", "capitals"])


def test_one_folder_is_the_one_task_of_the_prompts(tmp_path, make):
    make.zoo(tmp_path, tasks=("sums",))
    data = DataConfig(prompts_dir=str(tmp_path / "data"), checkpoint_dir=str(tmp_path / "adapters"))
    assert read_zoo(data, MODEL, ["sums"]).tasks == ["sums", "sums"]
    with pytest.raises(LoragenTrainError, match=r"checkpoint_dir is one task's, .* of 2 \(sums, spelling\); list them"):
        read_zoo(data, MODEL, ["sums", "spelling"])


def test_a_folder_without_adapters_is_named(tmp_path, make):
    make.zoo(tmp_path, tasks=("sums",))
    for folder, message in (("samples", "samples holds no adapters"), ("missing", "missing does not exist")):
        data = DataConfig(prompts_dir=str(tmp_path / "data"), checkpoint_dir=str(tmp_path / folder))
        with pytest.raises(LoraTokenizerError, match=message):
            read_zoo(data, MODEL, ["sums"])


@pytest.mark.parametrize(
    "row", [{"prompt": "x"}, {"task": "a"}, {"task": "a", "prompt": " "}, {"task": 1, "prompt": "x"}]
)
def test_a_prompt_line_that_prepare_did_not_write_is_named(tmp_path, make, row):
    path = make.rows(tmp_path / "train_prompts.jsonl", [{"task": "a", "prompt": "x"}, row])
    with pytest.raises(LoragenTrainError, match=r"train_prompts\.jsonl, line 2 needs a 'task' and a 'prompt'"):
        read_prompts(path)


def test_prompts_come_back_by_task(tmp_path, make):
    rows = [{"task": task, "prompt": f"{task}{n}"} for n in range(2) for task in ("a", "b")]
    assert read_prompts(make.rows(tmp_path / "x.jsonl", rows)) == {"a": ["a0", "a1"], "b": ["b0", "b1"]}
    with pytest.raises(LoragenInferError, match=r"missing\.jsonl is not a file"):
        read_prompts(tmp_path / "missing.jsonl")
