"""A training is resumed on the data that it was begun with: what differs is named, and what cannot go on is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.callbacks import Callback
from lora_tokenizer import LoraAdapter, write_adapter
from loragen_infer.zoo import SampleFile, ZooManifest
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, FitConfig, ModelConfig
from loragen_train.configs.objectives import LmConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.configs.unseen import UnseenConfig
from loragen_train.experiments.folder import FINAL_MODEL, LAST_CHECKPOINT
from loragen_train.training.fit import fit

TASKS = ("sums", "spelling", "capitals")
HELD_OUT = {"more": {"held_out": True}, "last": {"held_out": True}}


class Stop(Callback):
    """Leaves the training behind as a kill does, after its first checkpoint."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def begin(config: FitConfig) -> Path:
    with pytest.raises(KeyboardInterrupt):
        fit(config, callbacks=[Stop()])
    (folder,) = Path(config.output_dir).iterdir()
    return folder


@pytest.fixture
def config(make, tiny_lm, tmp_path) -> FitConfig:
    make.manifest(tmp_path / "zoo", (*TASKS, *HELD_OUT), base_model=tiny_lm, **HELD_OUT)
    return FitConfig(
        data=DataConfig(zoo=str(tmp_path / "zoo"), cache_dir=str(tmp_path / "cache"), prompts_per_condition=3),
        model=ModelConfig(hidden_dim=16, output_dim=16, num_hyperconv_blocks=0),
        training=TrainingConfig(
            max_epochs=2,
            accelerator="cpu",
            checkpoint_every_n_steps=1,
            lm=LmConfig(precision="fp32", samples_per_task=2),
            unseen=UnseenConfig(enabled=False),
        ),
        output_dir=str(tmp_path / "experiments"),
    )


def other_adapters(zoo: Path, make) -> None:
    for folder in (zoo / "adapters" / "sums").iterdir():
        adapter = make.adapter(0, num_layers=2)
        tensors = {name: 10 * value for name, value in adapter.tensors.items()}
        write_adapter(LoraAdapter(config=adapter.config, tensors=tensors), folder, overwrite=True)


def more_tasks(zoo: Path, make) -> None:
    manifest = ZooManifest.read(zoo)
    replace(manifest, tasks=[replace(task, held_out=False) for task in manifest.tasks]).write()


def fewer_tasks(zoo: Path, make) -> None:
    manifest = ZooManifest.read(zoo)
    replace(manifest, tasks=[task for task in manifest.tasks if task.name != "capitals"]).write()


def another_order(zoo: Path, make) -> None:
    manifest = ZooManifest.read(zoo)
    replace(manifest, tasks=manifest.tasks[::-1]).write()


def other_shapes(zoo: Path, make) -> None:
    for folder in zoo.glob("adapters/*/*"):
        write_adapter(make.adapter(0, num_layers=2, r=4), folder, overwrite=True)


@pytest.mark.parametrize("resume", ["auto", "folder"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_adapters, r"with other adapters: sums"),
        (more_tasks, r"new: more, last"),
        (fewer_tasks, r"gone: capitals"),
        (another_order, r"they are in another order"),
        (other_shapes, r"the layout of the adapters is another; with other adapters: sums, spelling, capitals"),
    ],
)
def test_other_tasks_or_adapters_are_refused(config, make, tmp_path, resume, change, named):
    folder = begin(config)
    before = (folder / LAST_CHECKPOINT).read_bytes()
    change(tmp_path / "zoo", make)
    said = rf"^The training to resume was begun with other tasks or adapters \({named}\); put those back, or begin anew"
    with pytest.raises(LoragenTrainError, match=said) as caught:
        fit(config, resume="auto" if resume == "auto" else str(folder))
    assert "\n" not in str(caught.value)
    assert (folder / LAST_CHECKPOINT).read_bytes() == before


def test_other_prompts_are_refused_under_auto_and_a_warning_for_a_folder(config, tmp_path, caplog):
    config = replace(config, training=replace(config.training, objective="lm"))
    folder = begin(config)
    zoo = tmp_path / "zoo"
    samples = zoo / "train" / "sums.jsonl"
    samples.write_text(samples.read_text().replace("What is", "Tell me what is"))
    manifest = ZooManifest.read(zoo)
    described = replace(manifest.tasks[0], prompts=SampleFile.of(samples, zoo))
    replace(manifest, tasks=[described, *manifest.tasks[1:]]).write()
    named = "begun with other prompts of sums and other samples of sums. Continue it all the same with --resume"
    with pytest.raises(LoragenTrainError, match=named):
        fit(config, resume="auto")
    caplog.clear()
    assert fit(config, resume=str(folder)) == folder
    assert [record.message for record in caplog.records if "that is resumed" in record.message] == [
        "The training that is resumed was begun with other prompts of sums.",
        "The training that is resumed was begun with other samples of sums.",
    ]


def test_other_tasks_to_choose_by_are_refused_under_auto_and_a_warning_for_a_folder(config, tmp_path, caplog):
    config = replace(config, training=replace(config.training, unseen=UnseenConfig(max_samples=4)))
    folder = begin(config)
    manifest = ZooManifest.read(tmp_path / "zoo")
    replace(manifest, tasks=[task for task in manifest.tasks if task.name != "more"]).write()
    with pytest.raises(LoragenTrainError, match="begun with other held-out tasks to choose the best weights by"):
        fit(config, resume="auto")
    caplog.clear()
    assert fit(config, resume=str(folder)) == folder
    assert "that is resumed was begun with other held-out tasks to choose the best weights by" in caplog.text


@pytest.mark.parametrize("recorded", ["nothing", "layout", "prompts"])
def test_an_experiment_of_before_the_record_goes_on(config, recorded):
    folder = begin(config)
    content = yaml.safe_load((folder / "config.yaml").read_text())
    known = content.pop("provenance")
    of_prompts = {task: {"prompts": hashes["prompts"]} for task, hashes in known["tasks"].items()}
    older = {"nothing": {}, "layout": {"layout": known["layout"]}, "prompts": {"tasks": of_prompts}}
    content["provenance"] = older[recorded]
    (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert fit(config, resume="auto") == folder
    assert (folder / FINAL_MODEL).is_dir()
