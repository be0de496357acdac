"""What a joint adapter is not trained for, and one that is there but not of the zoo as it is now."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lora_tokenizer import LoraAdapter, read_adapter, write_adapter
from loragen_infer import LoragenInferError
from loragen_infer.zoo import SampleFile, ZooManifest
from loragen_train import LoragenTrainError
from loragen_train.configs.importing import ImportConfig
from loragen_train.zoo import add_joint as adding
from loragen_train.zoo.add_joint import add_joint
from loragen_train.zoo.importing import import_zoo
from transformers import GPT2Config, GPT2LMHeadModel


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "use_dora": True}}, "have use_dora, and"),
        ({"lora": {"r": 2, "lora_alpha": 4.5, "target_modules": ["q_proj"]}}, "have no rank, whole alpha and"),
        ({"lora": {}}, "have no rank, whole alpha and list"),
        ({"lora": {"r": 2, "lora_alpha": "4", "target_modules": ["q_proj"]}}, "have no rank, whole alpha and list"),
        ({"joint": "/other/joint/checkpoint-4"}, "has a joint adapter elsewhere, /other/joint/checkpoint-4; take"),
        ({"tasks": []}, "has no training task with samples"),
    ],
)
def test_what_it_cannot_be_trained_for_is_named(joint_config, change, message):
    replace(ZooManifest.read(joint_config.zoo), **change).write()
    with pytest.raises(LoragenTrainError, match=message):
        add_joint(joint_config)


def test_samples_that_lie_elsewhere_are_named(joint_config, tmp_path):
    manifest = ZooManifest.read(joint_config.zoo)
    first, *rest = manifest.tasks
    file = shutil.copyfile(manifest.samples(first.prompts), tmp_path / "elsewhere.jsonl")
    replace(manifest, tasks=[replace(first, prompts=SampleFile.of(Path(file), manifest.folder)), *rest]).write()
    with pytest.raises(LoragenTrainError, match=r"The samples of sums lie in .*elsewhere\.jsonl, and not in .*train"):
        add_joint(joint_config)


def test_samples_that_were_changed_are_refused_before_the_training(joint_config):
    file = Path(joint_config.zoo) / "train/sums.jsonl"
    file.write_text(file.read_text().replace("What", "Tell me what", 1) + "\n")
    with pytest.raises(LoragenInferError, match=r"sums\.jsonl"):
        add_joint(joint_config)
    assert not (Path(joint_config.zoo) / "unfinished").exists()


def import_again(zoo: Path, **options: object) -> None:
    import_zoo(ImportConfig(table=str(zoo.parent / "table.json"), output_dir=str(zoo), **options), overwrite=True)


def change_table(zoo: Path, **changes: object) -> None:
    table = zoo.parent / "table.json"
    table.write_text(json.dumps([{**row, **changes} for row in json.loads(table.read_text())]))


def change_first(zoo: Path, **changes: object) -> None:
    table = zoo.parent / "table.json"
    first, *rest = json.loads(table.read_text())
    table.write_text(json.dumps([{**first, **changes}, *rest]))


def test_a_joint_adapter_of_other_samples_than_those_imported_since_is_refused(joint_config):
    zoo = Path(joint_config.zoo)
    add_joint(joint_config)
    change_table(zoo, test=None)
    import_again(zoo, num_test=4)
    assert ZooManifest.read(zoo).joint is None
    with pytest.raises(LoragenTrainError, match=r"joint was trained on other samples of sums than .*zoo has now; "):
        add_joint(joint_config)
    assert ZooManifest.read(zoo).joint is None
    for folder in ("joint", "joint_folds"):
        shutil.rmtree(zoo / folder)
    add_joint(joint_config)
    assert ZooManifest.read(zoo).joint is not None


def test_a_joint_adapter_of_a_task_that_is_held_out_since_is_refused(joint_config):
    zoo = Path(joint_config.zoo)
    add_joint(joint_config)
    change_first(zoo, held_out=True)
    import_again(zoo)
    with pytest.raises(LoragenTrainError, match=r"joint was trained on sums, which is held out by now; remove joint"):
        add_joint(joint_config)
    assert ZooManifest.read(zoo).joint is None


def test_folds_of_another_number_of_steps_are_refused_in_the_words_of_the_command(joint_config):
    add_joint(joint_config)
    shutil.rmtree(Path(joint_config.zoo) / "joint")
    said = r"joint_folds/1 was made with other settings \(steps: 7, and now 11\); give these again, or remove joint and"
    with pytest.raises(LoragenTrainError, match=said):
        add_joint(replace(joint_config, steps=11))


def test_a_zoo_that_is_imported_anew_in_the_meantime_does_not_get_it(joint_config, monkeypatch):
    zoo = Path(joint_config.zoo)
    change_table(zoo, test=None)
    train = adding.make_joint

    def slow(*arguments):
        train(*arguments)
        import_again(zoo, num_test=4)

    monkeypatch.setattr(adding, "make_joint", slow)
    with pytest.raises(LoragenTrainError, match="was trained on other samples"):
        add_joint(joint_config)
    assert ZooManifest.read(zoo).joint is None


def rewrite_adapters(zoo: Path, change: Callable[[LoraAdapter], LoraAdapter]) -> None:
    """Put other adapters in the place of those imported, and import these."""
    rows = json.loads((zoo.parent / "table.json").read_text())
    for row in rows:
        if "adapter" in row:
            folder = zoo.parent / "other" / row["name"]
            write_adapter(change(read_adapter(max(Path(row["adapter"]).glob("checkpoint-*")))), folder)
            row["adapter"] = str(folder)
    (zoo.parent / "table.json").write_text(json.dumps(rows))
    import_again(zoo)


def of_rank_one(adapter: LoraAdapter) -> LoraAdapter:
    tensors = {
        name: (tensor[:1] if ".lora_A." in name else tensor[:, :1]).contiguous()
        for name, tensor in adapter.tensors.items()
    }
    return replace(adapter, config=replace(adapter.config, r=1), tensors=tensors)


def of_the_first_layer(adapter: LoraAdapter) -> LoraAdapter:
    tensors = {name: tensor for name, tensor in adapter.tensors.items() if ".layers.0." in name}
    return replace(adapter, tensors=tensors)


def test_what_an_earlier_import_left_to_grow_from_is_refused(joint_config):
    zoo = Path(joint_config.zoo)
    add_joint(joint_config)
    rewrite_adapters(zoo, of_rank_one)
    with pytest.raises(LoragenTrainError, match=r"joint is no adapter of .*zoo: .*; remove joint and"):
        add_joint(joint_config)
    for folder in ("joint", "joint_folds"):
        shutil.rmtree(zoo / folder)
    with pytest.raises(LoragenTrainError, match=r"do not fit what .*: .*; remove initial_adapter, base_model\.json"):
        add_joint(joint_config)
    shutil.rmtree(zoo / "initial_adapter")
    (zoo / "base_model.json").unlink()
    add_joint(joint_config)
    (file,) = (zoo / "joint").glob("checkpoint-*")
    assert read_adapter(file).config.r == 1


def test_adapters_of_some_layers_get_none_and_the_zoo_stays_as_it_was(joint_config):
    zoo = Path(joint_config.zoo)
    rewrite_adapters(zoo, of_the_first_layer)
    with pytest.raises(LoragenTrainError, match=r"layers\.1\..*; it is trained for plain LoRA in all layers"):
        add_joint(joint_config)
    assert not {"initial_adapter", "base_model.json", "joint", "joint_folds"} & {path.name for path in zoo.iterdir()}


def test_the_base_model_may_lie_elsewhere_but_must_be_the_one(joint_config, tiny_lm, tmp_path):
    wrong = Path(shutil.copytree(tiny_lm, tmp_path / "wrong"))
    (wrong / "model.safetensors").unlink()
    GPT2LMHeadModel(GPT2Config(vocab_size=258, n_embd=16, n_layer=1, n_head=2)).save_pretrained(wrong)
    with pytest.raises(LoragenTrainError, match=r"names '[qv]_proj', which .*wrong lacks"):
        add_joint(replace(joint_config, base_model=str(wrong)))
    assert not (Path(joint_config.zoo) / "base_model.json").exists()
    moved = shutil.copytree(tiny_lm, tmp_path / "moved")
    add_joint(replace(joint_config, base_model=str(moved)))
    assert ZooManifest.read(joint_config.zoo).base_model == str(tiny_lm)


def test_a_folder_without_a_checkpoint_is_no_joint_adapter(joint_config):
    folder = Path(joint_config.zoo) / "joint"
    (folder / "checkpoint-best").mkdir(parents=True)
    with pytest.raises(LoragenTrainError, match=r"joint holds no checkpoint-<step>; remove it to have"):
        add_joint(joint_config)
