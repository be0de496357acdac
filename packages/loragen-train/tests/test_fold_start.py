"""Where training tasks start whose joint adapter is in folds: from adapters that have seen nothing of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora_tokenizer import write_adapter
from loragen_infer import GeneratorBundle, scale_adapter
from loragen_infer.zoo import JointFold, ZooManifest
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, FitConfig, ModelConfig
from loragen_train.configs.objectives import LmConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.configs.unseen import UnseenConfig
from loragen_train.training.build import build_setup
from loragen_train.training.fit import fit
from loragen_train.training.visits import Visit
from loragen_train.zoo.joint import mean_adapter

FOLDS = (("sums", "spelling"), ("capitals",), ("gone",))
SCALE = 0.5


@pytest.fixture
def adapters(make):
    """Those of the three folds."""
    return [make.adapter(90 + number, num_layers=2) for number in range(len(FOLDS))]


@pytest.fixture
def config(tmp_path, make, tiny_lm, adapters) -> FitConfig:
    """A zoo whose joint adapter is the mean of three folds; a training task is of none of them."""
    zoo = tmp_path / "zoo"
    manifest = make.manifest(zoo, ("sums", "spelling", "capitals", "more"), base_model=tiny_lm)
    write_adapter(mean_adapter(adapters), zoo / "joint" / "checkpoint-4")
    folds = []
    for number, tasks in enumerate(FOLDS):
        write_adapter(adapters[number], zoo / "joint_folds" / str(number) / "checkpoint-4")
        folds.append(JointFold(adapter=f"joint_folds/{number}/checkpoint-4", tasks=list(tasks)))
    replace(manifest, joint="joint/checkpoint-4", joint_folds=folds).write()
    return FitConfig(
        data=DataConfig(zoo=str(zoo), cache_dir=str(tmp_path / "cache")),
        model=ModelConfig(output_dim=16, unseen_from="joint", unseen_scale=SCALE),
        training=TrainingConfig(accelerator="cpu", objective="lm", lm=LmConfig(precision="fp32")),
    )


def test_a_step_starts_a_task_from_the_folds_that_have_not_seen_it(config, adapters, tmp_path):
    setup = build_setup(config, tmp_path / "cache")
    module, zoo = setup.module, setup.zoo
    visits = setup.data._data["lm"].train
    batch = visits.collate([visits[Visit(0, 0, task)] for task in range(4)])
    assert batch.folds.tolist() == [0, 0, 1, -1]
    seen: list[torch.Tensor] = []
    module.objective.forward = lambda predicted_BNW, *_, **__: seen.append(predicted_BNW) or predicted_BNW.sum()
    module._loss(batch, is_training=True, is_measured=False)
    starts = [mean_adapter([adapters[fold] for fold in folds]) for folds in ((1, 2), (1, 2), (0, 2), (0, 1, 2))]
    for found_NW, start in zip(zoo.stats.denormalize(seen[0]), starts, strict=True):
        expected_NW = zoo.layout.encode(scale_adapter(start, SCALE))
        torch.testing.assert_close(found_NW, expected_NW, rtol=1e-4, atol=1e-5)


def test_by_default_the_mean_of_folds_is_not_scaled(config, adapters, tmp_path):
    config = replace(config, model=replace(config.model, unseen_scale="auto"))
    setup = build_setup(config, tmp_path / "cache")
    expected_NW = setup.zoo.layout.encode(mean_adapter(adapters))
    torch.testing.assert_close(setup.zoo.stats.denormalize(setup.joint.tokens_NW), expected_NW, rtol=1e-4, atol=1e-5)


def test_what_is_written_starts_from_all_folds_and_has_learned_on_them(config, adapters, tmp_path, caplog):
    caplog.set_level("INFO")
    unwatched = replace(config.training, unseen=UnseenConfig(enabled=False), max_epochs=2, learning_rate=1e-2)
    config = replace(config, training=unwatched, output_dir=str(tmp_path / "experiments"))
    setup = build_setup(config, tmp_path / "cache")
    bundle = GeneratorBundle.load(fit(config))
    with torch.no_grad():
        start_NW = setup.module.generator(setup.encoder.encode(["junk"] * 5)[None])[0]
    expected_NW = setup.zoo.layout.encode(scale_adapter(mean_adapter(adapters), SCALE))
    torch.testing.assert_close(setup.zoo.stats.denormalize(start_NW), expected_NW, rtol=1e-4, atol=1e-5)
    assert not torch.equal(bundle.generator.expander.shared, setup.module.generator.expander.shared)
    assert "start from the zoo's joint adapter at scale 0.5 (in training from those of the other folds" in caplog.text
    # Each task is judged as one never seen too.
    assert "has seen the answers that val_loss is of" not in caplog.text


def test_a_training_is_not_resumed_with_other_folds(config, make, tmp_path):
    begun = build_setup(config, tmp_path / "cache").provenance()
    assert build_setup(config, tmp_path / "cache", before=begun).provenance() == begun
    fold = Path(config.data.zoo) / "joint_folds" / "1" / "checkpoint-4"
    write_adapter(make.adapter(77, num_layers=2), fold, overwrite=True)
    with pytest.raises(LoragenTrainError, match="is not the one that the training was begun with"):
        build_setup(config, tmp_path / "cache", before=begun)


@pytest.mark.parametrize("change", ["shape", "missing"])
def test_a_fold_that_cannot_be_used_is_one_sentence(config, make, tmp_path, change):
    zoo = Path(config.data.zoo)
    if change == "shape":
        write_adapter(make.adapter(99, num_layers=2, r=3), zoo / "joint_folds/1/checkpoint-4", overwrite=True)
    else:
        manifest = ZooManifest.read(zoo)
        gone = [replace(fold, adapter=f"gone-{number}") for number, fold in enumerate(manifest.joint_folds)]
        replace(manifest, joint_folds=gone).write()
    with pytest.raises(LoragenTrainError, match=r"^The joint adapter of the zoo cannot be used: .*ridge to train with"):
        build_setup(config, tmp_path / "cache")
