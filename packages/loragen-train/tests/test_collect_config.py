"""The configuration of collect: what cannot work is refused by name."""

import pytest
from loragen_train import LoragenTrainError
from loragen_train.configs.collect import CollectConfig, CollectTask, LoraSettings, LoraTraining


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, "tasks is empty"),
        ({"tasks": [CollectTask(name="a", source="x"), CollectTask(name="a", source="y")]}, "'a' is used twice"),
        ({"seed": -1}, "seed is -1, but must be from 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296, but must be from 0 to 4294967295"),
        (
            {"training": LoraTraining(max_steps=3, save_every=4)},
            r"training\.save_every is 4, but must be at most max_steps",
        ),
    ],
)
def test_a_config_that_cannot_work_is_refused(changes, message):
    values = {"base_model": "x", "tasks": [CollectTask(name="a", source="x")], **changes}
    with pytest.raises(LoragenTrainError, match=message):
        CollectConfig(**values)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (CollectTask, {"name": "../x", "source": "x"}, "becomes a file name"),
        (CollectTask, {"name": "a", "source": "x", "num_train": 0}, r"tasks \(a\): num_train is 0"),
        (CollectTask, {"name": "a", "source": "x", "num_test": -1}, r"tasks \(a\): num_test is -1"),
        (LoraSettings, {"r": 0}, r"lora\.r is 0"),
        (LoraSettings, {"lora_alpha": 0}, r"lora\.lora_alpha is 0"),
        (LoraSettings, {"lora_dropout": 1.0}, r"lora\.lora_dropout is 1\.0"),
        (LoraSettings, {"target_modules": []}, r"lora\.target_modules is empty"),
        (LoraTraining, {"learning_rate": 0.0}, r"training\.learning_rate is 0\.0"),
        (LoraTraining, {"learning_rate": float("nan")}, r"training\.learning_rate is nan"),
        (LoraTraining, {"keep_last": 0}, r"training\.keep_last is 0"),
    ],
)
def test_a_setting_out_of_range_is_named(kind, values, message):
    with pytest.raises(LoragenTrainError, match=message):
        kind(**values)
