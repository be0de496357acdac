"""The zoo as tokens: one layout for all, found again in the cache, and errors that name the checkpoint."""

from dataclasses import replace

import pytest
import torch
from lora_tokenizer import LoraTokenizerError, TokenStats, read_adapter, write_adapter
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, ModelConfig, TaskConfig
from loragen_train.zoo.tokens import read_zoo
from safetensors.torch import save_file

MODEL = ModelConfig(output_dim=16)
TASKS = ["sums", "spelling"]


@pytest.fixture
def read(tmp_path):
    """Read a zoo with the cache in a folder of this test."""

    def run(data: DataConfig, model: ModelConfig = MODEL, tasks: list[str] = TASKS):
        return read_zoo(data, model, tasks, tmp_path / "cache")

    return run


def data_config(values: dict, **changes: object) -> DataConfig:
    return DataConfig(**{**values, "tasks": [TaskConfig(**task) for task in values["tasks"]], **changes})


def test_all_checkpoints_of_all_tasks_share_a_layout_and_come_back(tmp_path, make, read):
    zoo = read(data_config(make.zoo(tmp_path)))
    assert zoo.layout.grid == (3, 14, 16)
    assert zoo.tasks == ["sums", "sums", "spelling", "spelling"]
    files = [tmp_path / "adapters" / task / f"checkpoint-{n}" for task in TASKS for n in (1, 2)]
    for tokens, file in zip(zoo.tokens, files, strict=True):
        back = zoo.layout.decode(tokens)
        for name, value in read_adapter(file).tensors.items():
            assert torch.equal(back.tensors[name], value)


def test_statistics_and_task_means_are_those_of_the_checkpoints(tmp_path, make, read):
    zoo = read(data_config(make.zoo(tmp_path)))
    tokens, mask = torch.stack(list(zoo.tokens)), zoo.layout.mask()
    torch.testing.assert_close(zoo.stats.mean, tokens.mean(0))
    torch.testing.assert_close(zoo.stats.std[mask], tokens.std(0, correction=0)[mask])
    means = dict(zoo.task_means())
    assert list(means) == zoo.names == TASKS
    torch.testing.assert_close(means["spelling"], tokens[2:].mean(0))


def test_a_second_start_finds_tokens_and_statistics(tmp_path, make, read, monkeypatch):
    data = data_config(make.zoo(tmp_path))
    first = read(data)
    written = first.tokens.file.stat().st_mtime_ns
    monkeypatch.setattr(TokenStats, "from_tokens", None)
    again = read(data)
    assert again.content_hashes("sums") == first.content_hashes("sums")
    assert again.tokens.file.stat().st_mtime_ns == written
    assert torch.equal(first.stats.mean, again.stats.mean)


def test_damaged_statistics_in_the_cache_are_made_again(tmp_path, make, read):
    data = data_config(make.zoo(tmp_path))
    first = read(data)
    (file,) = (tmp_path / "cache" / "statistics").iterdir()
    file.write_bytes(b"junk")
    assert torch.equal(read(data).stats.std, first.stats.std)


def test_the_last_checkpoints_are_the_last_by_number(tmp_path, make, read):
    values = make.zoo(tmp_path, tasks=("sums",), num_checkpoints=12)
    zoo = read(data_config(values, max_checkpoints=3), tasks=["sums"])
    for tokens, number in zip(zoo.tokens, (10, 11, 12), strict=True):
        want = read_adapter(tmp_path / "adapters" / "sums" / f"checkpoint-{number}")
        assert torch.equal(tokens, zoo.layout.encode(want))


def test_checkpoints_in_half_precision_take_half_the_cache(tmp_path, make, read):
    values = make.zoo(tmp_path)
    for task in TASKS:
        for number in (1, 2):
            folder = tmp_path / "adapters" / task / f"checkpoint-{number}"
            write_adapter(read_adapter(folder).to(torch.bfloat16), folder, overwrite=True)
    zoo = read(data_config(values))
    assert zoo.tokens[0].dtype == torch.bfloat16
    assert zoo.layout.decode(zoo.stats.mean).tensors.popitem()[1].dtype == torch.float32


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
def test_a_checkpoint_unlike_the_first_is_named(tmp_path, make, read, changes, message):
    values = make.zoo(tmp_path)
    write_adapter(make.adapter(0, **changes), tmp_path / "adapters" / "spelling" / "checkpoint-9")
    with pytest.raises(
        LoragenTrainError,
        match=rf"spelling/checkpoint-9 cannot be used: .*{message}.*all must fit .*sums/checkpoint-1, the first",
    ):
        read(data_config(values))


@pytest.mark.parametrize("number", [1, 2])
def test_what_cannot_be_read_is_named_and_left_out_only_when_asked(tmp_path, make, read, number, caplog):
    data = data_config(make.zoo(tmp_path, num_checkpoints=3))
    broken = tmp_path / "adapters" / "sums" / f"checkpoint-{number}" / "adapter_model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-9])
    with pytest.raises(LoragenTrainError, match=rf"sums/checkpoint-{number} cannot be used: .*skip_unreadable"):
        read(data)
    zoo = read(replace(data, skip_unreadable=True))
    assert zoo.tasks == ["sums", "sums", "spelling", "spelling", "spelling"]
    assert f"Left out the checkpoint {broken.parent}" in caplog.text

    for task in ("sums", "spelling"):
        for file in (tmp_path / "adapters" / task).rglob("*.safetensors"):
            if task == "sums":
                file.write_bytes(b"junk")
    with pytest.raises(LoragenTrainError, match="No checkpoint of the task 'sums' can be read"):
        read(replace(data, skip_unreadable=True))


def test_an_adapter_over_the_limit_is_an_error_that_says_what_would_fit(tmp_path, make, read):
    data = data_config(make.zoo(tmp_path))
    with pytest.raises(LoragenTrainError, match=r"sums/checkpoint-1 does not fit model\.max_seq_len=41 .*42"):
        read(data, ModelConfig(output_dim=16, max_seq_len=41))
    for enough in (42, "auto"):
        assert read(data, ModelConfig(output_dim=16, max_seq_len=enough)).layout.num_tokens == 42


def test_tokens_that_are_pieces_of_rank_components(tmp_path, make, read, caplog):
    caplog.set_level("INFO")
    data = data_config(make.zoo(tmp_path))
    zoos = [
        read(data, ModelConfig(output_dim=width, transpose_b=transpose_b))
        for width, transpose_b in ((16, False), ("auto", True), (32, True), (8, True))
    ]
    assert [zoo.layout.transpose_b for zoo in zoos] == [False, True, True, True]
    assert zoos[1].layout.token_dim == 16
    assert "Tokens have 16 values (model.output_dim: auto)." in caplog.text
    file = tmp_path / "adapters" / "sums" / "checkpoint-1"
    for zoo in zoos:
        # Tokens of 8 and of 16 values are the same bytes; statistics from the cache are those of the right shape.
        assert zoo.stats.mean.shape == (zoo.layout.num_tokens, zoo.layout.token_dim)
        torch.testing.assert_close(zoo.stats.mean, torch.stack(list(zoo.tokens)).mean(0))
        back = zoo.layout.decode(zoo.tokens[0])
        assert all(torch.equal(back.tensors[name], value) for name, value in read_adapter(file).tensors.items())


def test_a_folder_without_adapters_is_named(tmp_path, make, read):
    make.zoo(tmp_path, tasks=("sums",))
    for folder, message in (("samples", "samples holds no adapters"), ("missing", "missing does not exist")):
        with pytest.raises(LoraTokenizerError, match=message):
            read(DataConfig(checkpoint_dir=str(tmp_path / folder)), tasks=["sums"])


def test_a_checkpoint_of_two_tasks_is_refused(tmp_path, make, read):
    make.zoo(tmp_path)
    tasks = [TaskConfig(name=name, checkpoint_dir=str(tmp_path / "adapters" / "sums")) for name in TASKS]
    with pytest.raises(LoragenTrainError, match="sums/checkpoint-1 is a checkpoint of two tasks"):
        read(DataConfig(tasks=tasks))


def test_an_alpha_that_no_checkpoint_says_can_be_given(tmp_path, make, read):
    tasks = []
    for number, task in enumerate(TASKS):
        (tmp_path / task).mkdir()
        save_file(dict(make.adapter(number).tensors), tmp_path / task / "one.safetensors")
        tasks.append(TaskConfig(name=task, checkpoint_dir=str(tmp_path / task)))
    with pytest.raises(LoragenTrainError, match="alpha"):
        read(DataConfig(tasks=tasks))
    assert read(DataConfig(tasks=tasks, lora_alpha=6)).layout.config.lora_alpha == 6
    with pytest.raises(LoragenTrainError, match=r"data\.lora_alpha is 0, but must be positive"):
        DataConfig(tasks=tasks, lora_alpha=0)
