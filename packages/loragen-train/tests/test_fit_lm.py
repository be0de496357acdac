"""Trainings through a frozen language model: which tasks join, what is logged, phases, resume to the bit, refusals."""

import csv
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hyperconv import GeneratorConfig
from loragen_infer import GeneratorBundle, LoragenInferError
from loragen_infer.samples import prompt_hash
from loragen_infer.zoo import SampleFile
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, FitConfig, ModelConfig, TaskConfig
from loragen_train.configs.objectives import DistillConfig, LmConfig, PhaseConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.configs.unseen import UnseenConfig
from loragen_train.experiments.reader import read_experiments
from loragen_train.training.build import build_setup
from loragen_train.training.dry_run import dry_run
from loragen_train.training.fit import fit
from loragen_train.training.module import GeneratorModule
from loragen_train.training.resume import Interrupted
from loragen_train.training.samples import NONE
from loragen_train.training.unseen import UNSEEN_NLL, UnseenTasks
from loragen_train.training.visits import Visit
from loragen_train.zoo.frozen import FrozenModel

TASKS = ("sums", "spelling", "capitals", "more", "last")
LM = LmConfig(tasks_per_step=2, samples_per_task=2, precision="fp32")
PHASES = [
    PhaseConfig(objective="reconstruction", max_epochs=1, learning_rate=1e-3),
    PhaseConfig(objective="lm", max_epochs=2, learning_rate=5e-4),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory, make, tiny_lm) -> FitConfig:
    """Two tasks with adapters and samples, one with samples alone, one that failed, one held out."""
    root = tmp_path_factory.mktemp("lm")
    make.manifest(
        root / "zoo",
        TASKS,
        base_model=tiny_lm,
        capitals={"adapters": []},
        more={"failure": "it diverged", "adapters": []},
        last={"held_out": True},
    )
    return FitConfig(
        data=DataConfig(zoo=str(root / "zoo"), cache_dir=str(root / "cache"), prompts_per_condition=3),
        model=ModelConfig(hidden_dim=16, output_dim=16, num_hyperconv_blocks=1, kernel_size=1),
        training=TrainingConfig(objective="lm", max_epochs=2, learning_rate=1e-3, accelerator="cpu", lm=LM),
        name="lm",
        output_dir=str(root / "experiments"),
    )


def changed(config: FitConfig, folder: Path, **training: object) -> FitConfig:
    return replace(config, output_dir=str(folder), training=replace(config.training, **training))


def column(experiment: Path, name: str) -> list[tuple[int, float]]:
    with (experiment / "csv_logs" / "metrics.csv").open() as stream:
        return [(int(row["epoch"]), float(row[name])) for row in csv.DictReader(stream) if row.get(name)]


def weights(experiment: Path) -> bytes:
    return (experiment / "results" / "final_model" / "generator.safetensors").read_bytes()


def test_tasks_without_an_adapter_join_and_the_bundle_knows_them(config, caplog):
    experiment = fit(config)
    known = GeneratorBundle.load(experiment).training_tasks
    assert known.names == ("sums", "spelling", "capitals")
    assert all(known.prompt_hashes[name] for name in known.names)
    assert "Left out 1 task of the zoo that cannot be trained on: more (it diverged)." in caplog.text
    for name in ("train_loss", "train_nll", "val_loss", "val_nll"):
        assert [epoch for epoch, _ in column(experiment, name)] == [0, 1]
    # The held-out task is watched with the model that is trained through, from before the first step on.
    assert [epoch for epoch, _ in column(experiment, "val_unseen_nll")] == [0, 0, 1]
    recorded = yaml.safe_load((experiment / "config.yaml").read_text())
    assert recorded["provenance"]["lm_precision"] == "fp32"
    assert "samples" in recorded["provenance"]["tasks"]["capitals"]
    assert "checkpoints" not in recorded["provenance"]["tasks"]["capitals"]
    again = fit(FitConfig(**{**vars(config), "output_dir": f"{config.output_dir}-again"}))
    assert weights(again) == weights(experiment)


def test_the_loss_falls_on_samples_that_no_step_answers(config, tmp_path):
    experiment = fit(changed(config, tmp_path, max_epochs=12, learning_rate=5e-3, gradient_clip_val=1.0))
    seen = [value for _, value in column(experiment, "val_loss")]
    assert seen[-1] < seen[0] - 0.02


def test_what_is_answered_and_what_is_asked_stay_apart(config, tmp_path, monkeypatch, questions):
    """No answer is in a condition; a step answers training samples alone, a validation its own; no test example."""
    setup = build_setup(config, tmp_path)
    table = setup.data._data["lm"].train
    examples = setup.module.objectives["lm"]._table
    answers = {example.response for example in examples.examples}
    assert len(answers) > 10
    assert not [text for text in setup.table.texts if any(answer in text for answer in answers)]
    trained = {prompt_hash(examples.examples[number].prompt) for task in TASKS[:3] for number in examples.train[task]}
    judged = {prompt_hash(examples.examples[number].prompt) for task in TASKS[:3] for number in examples.val[task]}
    tested = {prompt_hash(question) for task in TASKS for question in questions[task][40:]}
    assert not trained & judged
    assert not (trained | judged) & tested
    assert trained <= set().union(*setup.prompts.train_hashes.values())
    assert list(table.tasks) == ["sums", "spelling", "capitals"]

    seen: dict[str, set[int]] = {"train": set(), "val": set()}
    for stage, name in (("train", "training_step"), ("val", "validation_step")):
        original = getattr(GeneratorModule, name)

        def watched(self, batch, batch_idx, stage=stage, original=original):
            seen[stage] |= set(batch.samples.flatten().tolist()) - {NONE}
            assert batch.prompts.shape == batch.mask.shape == (2, 3)
            return original(self, batch, batch_idx)

        monkeypatch.setattr(GeneratorModule, name, watched)
    fit(changed(config, tmp_path, max_epochs=4))
    assert seen["train"] <= {number for numbers in examples.train.values() for number in numbers}
    assert seen["val"] <= {number for numbers in examples.val.values() for number in numbers}
    assert len(seen["train"]) > 20


def test_a_task_is_trained_as_one_that_was_never_seen(config, tmp_path):
    """Its own adapter has no part in what is generated for it, and a task without one gets the whole regression."""
    setup = build_setup(config, tmp_path)
    module, zoo = setup.module, setup.zoo
    assert module.generator.config.num_tasks == 2
    batch = setup.data._data["lm"].train.collate([setup.data._data["lm"].train[Visit(0, 0, task)] for task in range(3)])
    assert batch.regression_tasks.tolist() == [0, 1, -1]
    seen: list[torch.Tensor] = []
    module.objective.forward = lambda predicted_BNW, *_, **__: seen.append(predicted_BNW) or predicted_BNW.sum()
    module._loss(batch, is_training=True, is_measured=False)
    # Of two tasks the regression without one is the other's adapter.
    means_KNW = zoo.stats.normalize(torch.stack([mean_NW for _, mean_NW in zoo.task_means()]))
    torch.testing.assert_close(seen[0][:2], means_KNW.flip(0), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(seen[0][2], means_KNW[0], atol=1e-2)


def test_the_directions_are_those_of_all_tasks_with_adapters_or_without(config, tmp_path, monkeypatch):
    monkeypatch.setattr("loragen_train.configs.fit._FEW_TASKS", 0)
    setup = build_setup(config, tmp_path)
    directions, embeddings_nD = setup.module.generator.expander.directions, setup.module.condition.embeddings
    means_MD = torch.stack([embeddings_nD[list(setup.table.train[task])].mean(0) for task in setup.table.train])
    assert len(means_MD) == len(setup.zoo.names) + 1
    assert len(directions.axes_RD) == 1
    torch.testing.assert_close(directions(means_MD).square().mean(0), torch.ones(1))
    torch.testing.assert_close(directions.center_D, means_MD.mean(0))


def test_remembering_can_be_left(config, tmp_path):
    plain = replace(config, model=replace(config.model, remember_tasks=False))
    setup = build_setup(plain, tmp_path)
    assert setup.module.generator.config.num_tasks == 0
    assert setup.module.left_out is None
    seen = replace(config, training=replace(config.training, lm=replace(LM, leave_own_out=False)))
    setup = build_setup(seen, tmp_path)
    # Of known tasks, which give their own adapters, nothing could be learned.
    assert setup.module.generator.config.num_tasks == 0
    assert setup.module.left_out is None


def test_tasks_are_remembered_where_that_can_be(config):
    with pytest.raises(LoragenTrainError, match="remember_tasks is true, but a training by reconstruction"):
        replace(config, model=ModelConfig(remember_tasks=True), training=TrainingConfig(phases=PHASES))
    assert ModelConfig().remembers(leaves_own_out=True)
    assert not ModelConfig().remembers(leaves_own_out=False)
    assert ModelConfig(remember_tasks=True).remembers(leaves_own_out=False)
    # The embeddings of known prompts, by which they are recognised, would not stay.
    assert not ModelConfig(freeze_text_encoder=False).remembers(leaves_own_out=True)
    with pytest.raises(LoragenTrainError, match=r"remember_tasks is true, but the text encoder is trained; leave it"):
        ModelConfig(remember_tasks=True, freeze_text_encoder=False)
    with pytest.raises(LoragenTrainError, match=r"remember_tasks is true, but generator\.expander is not linear"):
        ModelConfig(remember_tasks=True, generator=GeneratorConfig(expander="basis"))


def test_every_phase_has_its_objective_its_epochs_and_its_rate(config, tmp_path):
    experiment = fit(changed(config, tmp_path, phases=PHASES, validate_every_n_epochs=1))
    assert [epoch for epoch, _ in column(experiment, "val_mse")] == [0]
    assert [epoch for epoch, _ in column(experiment, "val_nll")] == [1, 2]
    assert [epoch for epoch, _ in column(experiment, "val_loss")] == [0, 1, 2]
    rates = dict(column(experiment, "learning_rate"))
    assert rates[0] < 1e-3
    assert 1e-4 < rates[1] < 5e-4
    assert rates[2] < 1e-5


@pytest.mark.parametrize("watched", [True, False])
def test_the_best_weights_are_of_the_last_phase_unless_unseen_tasks_tell(config, tmp_path, watched, monkeypatch):
    """Unseen tasks are best after the first epoch; val_loss before it is of another quantity."""
    training = replace(config.training, unseen=UnseenConfig(enabled=watched), phases=PHASES, validate_every_n_epochs=1)
    monkeypatch.setattr(UnseenTasks, "_score", lambda self, trainer, _: {UNSEEN_NLL: 1.0 + trainer.current_epoch})
    experiment = fit(replace(config, output_dir=str(tmp_path), training=training))
    (best,) = (experiment / "checkpoints").glob("epoch=*.ckpt")
    assert (int(best.name.partition("-")[0].removeprefix("epoch=")) in (1, 2)) is not watched


@pytest.mark.parametrize("watched", [True, False])
def test_no_phase_is_stopped_early_but_the_last(config, tmp_path, watched, monkeypatch):
    """Unseen tasks get worse from the first epoch on, and the losses of a rate that changes nothing no better."""
    phases = [
        PhaseConfig(objective="reconstruction", max_epochs=3, learning_rate=1e-20),
        PhaseConfig(objective="lm", max_epochs=4, learning_rate=1e-20),
    ]
    monkeypatch.setattr(UnseenTasks, "_score", lambda self, trainer, _: {UNSEEN_NLL: 1.0 + trainer.current_epoch})
    unseen, often = UnseenConfig(enabled=watched), {"validate_every_n_epochs": 1, "early_stopping_patience": 1}
    experiment = fit(changed(config, tmp_path, phases=phases, unseen=unseen, weight_decay=0.0, **often))
    assert [epoch for epoch, _ in column(experiment, "val_loss")] == [0, 1, 2, 3, 4]


def stop_after(monkeypatch: pytest.MonkeyPatch, num_batches: int) -> None:
    original, seen = GeneratorModule.training_step, []

    def step(self, batch, batch_idx):
        seen.append(batch_idx)
        if len(seen) == num_batches:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(GeneratorModule, "training_step", step)


# In the phase of one step, at its end; within an epoch of the next, at that epoch's end, and in the last.
@pytest.mark.parametrize(("num_batches", "precision"), [*((number, "fp32") for number in (1, 2, 3, 5)), (3, "bf16")])
def test_a_stopped_training_through_the_language_model_ends_the_same(
    config, tmp_path, monkeypatch, num_batches, precision
):
    lm = replace(LM, precision=precision)
    config = changed(config, tmp_path / "stopped", phases=PHASES, lm=lm, gradient_clip_val=1.0, condition_noise=0.1)
    expected = weights(fit(replace(config, output_dir=str(tmp_path / "undisturbed"))))
    with monkeypatch.context() as patch:
        stop_after(patch, num_batches)
        with pytest.raises(Interrupted):
            fit(config)
    assert weights(fit(config, resume="auto")) == expected


@pytest.mark.parametrize("teacher", ["own", "examples"])
def test_a_teacher_is_distilled(config, tmp_path, teacher):
    distill = DistillConfig(teacher=teacher, num_examples=2, top_k=4)
    experiment = fit(changed(config, tmp_path, objective="distill", distill=distill, max_epochs=1))
    assert [value for _, value in column(experiment, "val_kl")] == [
        value for _, value in column(experiment, "val_loss")
    ]
    trained = GeneratorBundle.load(experiment).training_tasks.names
    # What solved samples teach needs no adapter.
    assert trained == (("sums", "spelling") if teacher == "own" else ("sums", "spelling", "capitals"))


def test_what_a_phase_of_distilling_leaves_out_is_named(config, tmp_path, caplog):
    phases = [PhaseConfig(objective=name, max_epochs=1, learning_rate=1e-3) for name in ("lm", "distill")]
    training = replace(config.training, phases=phases, distill=DistillConfig(teacher="own", top_k=4))
    build_setup(replace(config, training=training), tmp_path)
    assert "Not distilled, for want of an adapter: capitals." in caplog.text


def test_tasks_of_a_configuration_join_with_their_prompts_alone(config, tmp_path, tiny_lm):
    zoo = Path(config.data.zoo)
    tasks = [
        TaskConfig(name="sums", checkpoint_dir=str(zoo / "adapters" / "sums"), prompts=str(zoo / "train/sums.jsonl")),
        TaskConfig(name="more", prompts=str(zoo / "train/more.jsonl")),
    ]
    data = replace(config.data, zoo=None, tasks=tasks, samples_per_prompt=1)
    lm = replace(LM, base_model=str(tiny_lm))
    trained = fit(changed(replace(config, data=data), tmp_path, max_epochs=1, lm=lm))
    assert GeneratorBundle.load(trained).training_tasks.names == ("sums", "more")
    with pytest.raises(LoragenTrainError, match=r"goes through the base model, which neither a zoo\.json nor the adap"):
        fit(changed(replace(config, data=data), tmp_path))
    with pytest.raises(LoragenTrainError, match=r"data\.tasks: 'more' has no checkpoint_dir, and no phase of the trai"):
        fit(changed(replace(config, data=data), tmp_path, objective="reconstruction"))
    with pytest.raises(LoragenTrainError, match=r"the task 'bare' has neither a checkpoint_dir nor prompts"):
        TaskConfig(name="bare")


def test_a_dry_run_tries_every_phase(config, tmp_path):
    phased = replace(config, training=replace(config.training, phases=PHASES))
    said = dry_run(phased)
    # Of the network that all phases train.
    assert f"{build_setup(phased, tmp_path).module.generator.num_parameters():,} parameters" in said
    assert "4 checkpoints" in said
    # One step of four checkpoints; two of two tasks, twice.
    assert "5 steps, about" in said
    assert len(said.splitlines()[1].split(" MiB")[0].split(", ")) >= 3


@pytest.mark.parametrize(
    ("lm", "said"),
    [
        (
            {"max_length": 12},
            r"row \d+ has \d+ tokens, over training\.lm\.max_length, which is 12; raise it, or set tr",
        ),
        (
            {"max_length": 8, "too_long": "truncate"},
            r"leaves no room for a prompt within 8 tokens; raise training\.lm\.",
        ),
        ({"max_length": 8, "too_long": "drop"}, r"needs samples with responses, and none of 3 tasks has any within tr"),
    ],
)
def test_samples_longer_than_the_budget_are_refused(config, tmp_path, lm, said):
    with pytest.raises(LoragenTrainError, match=said) as caught:
        fit(changed(config, tmp_path, lm=replace(LM, **lm)))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_objective_that_lacks_samples_says_so(config, make, tmp_path, tiny_lm, questions):
    manifest = make.manifest(tmp_path / "zoo", base_model=tiny_lm)
    for name in ("sums", "spelling"):
        make.rows(tmp_path / "zoo" / "train" / f"{name}.jsonl", [{"prompt": text} for text in questions[name]])
    tasks = [
        replace(task, prompts=SampleFile.of(manifest.path(task.prompts.path), manifest.folder))
        for task in manifest.tasks
    ]
    replace(manifest, tasks=tasks).write()
    data = replace(config.data, zoo=str(tmp_path / "zoo"))
    with pytest.raises(
        LoragenTrainError, match=r"^Training through the language model needs samples with responses, an"
    ):
        fit(changed(replace(config, data=data), tmp_path / "out"))


def test_an_objective_that_lacks_adapters_says_so(config, make, tmp_path, tiny_lm):
    bare = {"adapters": []}
    make.manifest(tmp_path / "zoo", base_model=tiny_lm, sums=bare, spelling=bare)
    data = replace(config.data, zoo=str(tmp_path / "zoo"))
    with pytest.raises(
        LoragenTrainError, match=r"No task has a checkpoint, and shapes and statistics of generated ada"
    ):
        fit(changed(replace(config, data=data), tmp_path / "out"))
    with pytest.raises(
        LoragenTrainError, match=r"has no task to train on: of 2 tasks, 0 are held out, 2 lack adapters"
    ):
        fit(changed(replace(config, data=data), tmp_path / "out", objective="reconstruction"))


def test_a_base_model_that_is_not_there_or_of_another_shape_is_one_sentence(config, make, tmp_path, tiny_lm):
    nowhere = replace(LM, base_model=str(tmp_path / "nowhere"))
    with pytest.raises(LoragenInferError, match="nowhere"):
        fit(changed(config, tmp_path / "out", lm=nowhere))
    make.manifest(tmp_path / "zoo")  # of three layers, where the model has two
    data = replace(config.data, zoo=str(tmp_path / "zoo"))
    with pytest.raises(LoragenInferError, match=r"no module 'model\.layers\.2\.self_attn\.q_proj'"):
        fit(changed(replace(config, data=data), tmp_path / "out", lm=replace(LM, base_model=str(tiny_lm))))


def test_a_loss_that_is_not_finite_stops_at_once_and_what_was_best_by_then_is_kept(config, tmp_path, monkeypatch):
    def spoil(self, batch, batch_idx):
        if self.current_epoch == 1:
            with torch.no_grad():
                next(self.generator.parameters()).fill_(torch.nan)

    monkeypatch.setattr(GeneratorModule, "on_train_batch_start", spoil)
    said = (
        r"^The training diverged \(in step 3 the loss of lm is nan\); lower training\.learning_rate, which is 0\.001\. "
        r"What was best by then \(best val_unseen_nll [\d.]+\) is in .*final_model\.$"
    )
    with pytest.raises(LoragenTrainError, match=said):
        fit(changed(config, tmp_path))
    (folder,) = tmp_path.iterdir()
    kept = GeneratorBundle.load(folder).generator
    assert all(value.isfinite().all() for value in kept.parameters())
    with pytest.raises(
        LoragenTrainError, match=r"has failed: The training diverged .* What was best by then is in .*fin"
    ):
        fit(changed(config, tmp_path), resume=str(folder))
    assert read_experiments([folder])[0].missing[0].startswith("It has failed: The training diverged (in step 3")


def test_a_loss_that_is_not_finite_from_the_start_is_not_the_learning_rates_fault(config, tmp_path, monkeypatch):
    of = FrozenModel.of.__func__

    def spoiled(cls, model, *arguments, **options):
        with torch.no_grad():
            model.get_input_embeddings().weight.fill_(torch.nan)
        return of(cls, model, *arguments, **options)

    monkeypatch.setattr(FrozenModel, "of", classmethod(spoiled))
    with pytest.raises(LoragenTrainError, match=r"^The loss of lm is nan in the first step, .* check the base model"):
        fit(changed(config, tmp_path, unseen=UnseenConfig(enabled=False)))
    assert not list(tmp_path.rglob("generator.safetensors"))


def test_the_precision_that_was_measured_is_that_of_a_resumed_training(config, tmp_path, monkeypatch):
    lm = replace(LM, precision="auto")
    measured = iter(["bf16", "fp32"])
    monkeypatch.setattr("loragen_train.training.base_model.faster_precision", lambda: next(measured))
    config = changed(config, tmp_path, lm=lm)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Interrupted):
            fit(config)
    fit(config, resume="auto")
    assert next(measured) == "fp32"
