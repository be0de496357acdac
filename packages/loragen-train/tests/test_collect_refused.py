"""What collect refuses: other settings, another base model, folders that are not its own, damaged records."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from loragen_infer.zoo import ZooManifest, ZooTask
from loragen_train import LoragenTrainError
from loragen_train.configs.collect import CollectConfig, CollectTask, LoraSettings, LoraTraining
from loragen_train.zoo.collect import collect
from safetensors.torch import load_file, save_file


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below ``folder`` with the time of its last change and its bytes, locks left out."""
    files = [file for file in folder.rglob("*") if file.is_file() and ".lock" not in str(file.relative_to(folder))]
    return {str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


@pytest.fixture(scope="module")
def config(collect_config) -> CollectConfig:
    return collect_config


@pytest.fixture(scope="module")
def zoo(collected) -> SimpleNamespace:
    return collected


def with_output(config: CollectConfig, folder: Path, **changes: object) -> CollectConfig:
    return replace(config, output_dir=str(folder), **changes)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("seed", {"seed": 9}),
        ("lora", {"lora": LoraSettings(r=3)}),
        ("training", {"training": LoraTraining(max_steps=2, save_every=1)}),
        ("task", {"tasks": [CollectTask(name="sums", source="reasoning-gym:gcd", num_train=5, num_test=1)]}),
    ],
)
def test_other_settings_on_the_same_folder_are_refused_and_change_nothing(zoo, config, key, change):
    before = contents(zoo.root)
    with pytest.raises(LoragenTrainError) as caught:
        collect(replace(config, **change))
    message = str(caught.value)
    assert f"{zoo.root}/adapters/sums was made with other settings ({key}" in message
    assert message.endswith("; remove it or choose another output_dir.")
    assert "\n" not in message
    assert contents(zoo.root) == before


@pytest.mark.parametrize(("key", "change"), [("seed", {"seed": 9}), ("lora", {"lora": LoraSettings(r=3)})])
def test_a_new_task_cannot_join_a_zoo_of_another_initialisation(zoo, config, key, change):
    new = CollectTask(name="capitals", source="reasoning-gym:gcd", num_train=5, num_test=1)
    before = contents(zoo.root)
    with pytest.raises(LoragenTrainError, match=rf"initial_adapter was made with other settings \({key}"):
        collect(replace(config, tasks=[new], **change))
    assert contents(zoo.root) == before


def test_a_folder_that_is_not_ours_is_left_alone(config, tmp_path):
    (tmp_path / "adapters" / "sums").mkdir(parents=True)
    (tmp_path / "adapters" / "sums" / "precious.txt").write_text("x")
    with pytest.raises(LoragenTrainError, match=r"adapters/sums exists but was not written by collect; choose another"):
        collect(with_output(config, tmp_path))
    assert (tmp_path / "adapters" / "sums" / "precious.txt").read_text() == "x"


@pytest.mark.parametrize("modules", [["no_such_module"], ["q_proj", "no_such_module"]])
def test_target_modules_that_the_model_lacks_are_refused(config, tmp_path, modules):
    lora = replace(config.lora, target_modules=modules)
    with pytest.raises(
        LoragenTrainError, match=r"^lora\.target_modules names 'no_such_module', which .*tiny-llama lacks"
    ) as caught:
        collect(with_output(config, tmp_path, lora=lora))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "adapters").exists()
    assert not (tmp_path / "initial_adapter").exists()


@pytest.mark.parametrize("content", ['{"settings": 3}', "[" * 100_000, "\x00"])
@pytest.mark.parametrize("record", ["adapters/sums/training.json", "initial_adapter/settings.json"])
def test_a_damaged_record_is_one_sentence(zoo, config, tmp_path, record, content):
    copy = Path(shutil.copytree(zoo.root, tmp_path / "zoo"))
    (copy / record).write_text(content)
    if record.startswith("initial"):
        shutil.rmtree(copy / "adapters" / "sums")
    before = contents(copy / "adapters")
    with pytest.raises(LoragenTrainError) as caught:
        collect(with_output(config, copy))
    message = str(caught.value)
    if content == '{"settings": 3}':
        assert message.startswith(f"{(copy / record).parent} was made with other settings (base_model: None, and now ")
    else:
        assert message.startswith(f"{copy / record} is missing or damaged (")
    assert "\n" not in message
    assert len(message) < 400
    assert contents(copy / "adapters") == before


def test_what_differs_is_named_to_the_key(zoo, config):
    with pytest.raises(LoragenTrainError, match=r"settings \(training\.max_steps: 11, and now 12\); remove it or"):
        collect(replace(config, training=replace(config.training, max_steps=12)))


def test_a_base_model_that_changed_is_refused(zoo, config, tiny_lm, tmp_path):
    base = Path(shutil.copytree(tiny_lm, tmp_path / "base"))
    first = with_output(config, tmp_path / "zoo", base_model=str(base), tasks=config.tasks[:1])
    collect(first)
    tensors = load_file(base / "model.safetensors")
    name = min(tensors)
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        LoragenTrainError, match=r"^The base model '.*base' is not what .*zoo was begun with: .*base_model"
    ):
        collect(replace(first, tasks=config.tasks[:2]))
    assert not (tmp_path / "zoo" / "adapters" / "spelling").exists()


def test_tasks_are_not_collected_into_a_zoo_of_imported_adapters(config, tmp_path):
    tasks = [ZooTask(name="strange", adapters=["adapters/strange"])]
    file = ZooManifest(base_model=config.base_model, tasks=tasks, folder=tmp_path).write()
    before = file.read_bytes()
    with pytest.raises(LoragenTrainError, match=r"holds imported adapters; choose another output_dir\.$"):
        collect(with_output(config, tmp_path))
    assert file.read_bytes() == before
    assert not (tmp_path / "adapters").exists()
