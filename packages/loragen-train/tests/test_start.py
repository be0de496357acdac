"""Where a generator starts: as the ridge regression that evaluate shows, with as many patterns as there are tasks."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hyperconv import GeneratorConfig
from lora_tokenizer import write_adapter
from loragen_infer import GeneratorBundle, scale_adapter
from loragen_infer.evaluation import read_task_means
from loragen_infer.evaluation.baselines import Ridge
from loragen_infer.evaluation.config import EvaluateConfig
from loragen_infer.evaluation.examples import read_inputs
from loragen_infer.evaluation.training_tasks import Training
from loragen_infer.evaluation.zoo_tasks import with_tasks_of_zoo
from loragen_infer.samples import prompt_hash, read_examples
from loragen_infer.zoo import SampleFile, ZooManifest
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, ExportConfig, FitConfig, ModelConfig
from loragen_train.configs.objectives import LmConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.configs.unseen import UnseenConfig
from loragen_train.experiments.folder import FINAL_MODEL
from loragen_train.training.build import build_setup
from loragen_train.training.fit import fit
from loragen_train.training.results import write_results
from safetensors.torch import load_file, save_file

TASKS = ("sums", "spelling", "capitals", "more", "last")


@pytest.fixture(scope="module")
def config(tmp_path_factory, make) -> FitConfig:
    root = tmp_path_factory.mktemp("start")
    make.manifest(root / "zoo", TASKS)
    return FitConfig(
        data=DataConfig(zoo=str(root / "zoo"), cache_dir=str(root / "cache"), prompts_per_condition=5),
        model=ModelConfig(hidden_dim=16, output_dim=16, num_hyperconv_blocks=1),
        training=TrainingConfig(accelerator="cpu"),
    )


def test_before_the_first_step_it_is_the_ridge_row_of_evaluate(config, tmp_path):
    setup = build_setup(config, tmp_path / "cache")
    write_results(setup, config, tmp_path, weights=None, device=torch.device("cpu"))
    bundle = GeneratorBundle.load(tmp_path / FINAL_MODEL)
    means = read_task_means(tmp_path / FINAL_MODEL / "generator.safetensors")
    ridge = Ridge(means)
    for text in (["What is 3 + 4?"] * 5, ["Spell it backward.", "Name a capital.", "a", "b", "c"], ["junk"] * 5):
        condition_PD = setup.encoder.encode(text)
        with torch.no_grad():
            generated = bundle.stats.denormalize(bundle.generator(condition_PD[None])[0])
        expected = ridge.tokens(condition_PD.mean(dim=0), among=range(len(TASKS)), num_prompts=5)
        torch.testing.assert_close(generated, expected, atol=1e-5, rtol=1e-5)
    # It knows one task from another.
    assert (means.token_means[0] - means.token_means[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, len(TASKS) - 1),
        ({"num_basis": 3}, 3),
        ({"num_basis": 16}, 16),
        ({"generator": GeneratorConfig(num_basis=7)}, 7),
        ({"generator": GeneratorConfig(expander="basis")}, len(TASKS) - 1),
    ],
)
def test_the_number_of_patterns_grows_with_the_tasks_or_is_the_one_given(config, tmp_path, model, expected):
    setup = build_setup(replace(config, model=replace(config.model, **model)), tmp_path)
    assert setup.module.generator.config.num_basis == expected


def test_corrections_are_as_many_as_tasks_bear_and_memory_holds():
    small, large = (30, 20, 384), (32, 832, 128)
    for num_prompted, grid, expected in (
        (None, small, 4),
        (156, small, 45),
        (20, small, 0),
        (479, large, 21),
    ):
        network = ModelConfig().network(
            condition_dim=384, grid=grid, num_tasks=34, num_prompted=num_prompted, leaves_own_out=True
        )
        assert network.num_corrections == expected
        assert math.prod(grid) * (2 + network.num_basis + network.num_corrections) <= 160_000_000


@pytest.mark.parametrize(("num_basis", "is_whole"), [("auto", True), (3, True), (2, False)])
def test_tasks_that_are_remembered_by_too_few_patterns_are_told(with_joint, tmp_path, caplog, num_basis, is_whole):
    model = replace(with_joint.model, num_basis=num_basis, unseen_from="ridge")
    setup = build_setup(replace(with_joint, model=model), tmp_path / "cache")
    means_KNW = setup.zoo.stats.normalize(torch.stack([mean_NW for _, mean_NW in setup.zoo.task_means()]))
    prompts = [setup.module.condition(torch.tensor(list(own))[None]) for own in setup.table.train.values()]
    with torch.no_grad():
        own_KNW = torch.cat([setup.module.generator(condition_1PD) for condition_1PD in prompts])
    missed = ((own_KNW - means_KNW).square().sum() / (means_KNW - means_KNW.mean(dim=0)).square().sum()).item()
    assert (missed < 1e-8) is is_whole
    share = f"4 training tasks are remembered by 2 learned patterns, which hold {100 * (1 - missed):.1f} % of"
    assert (share in caplog.text) is not is_whole
    assert ("set model.num_basis to 3." in caplog.text) is not is_whole
    # Without a memory there is no adapter of their own to be kept.
    caplog.clear()
    build_setup(replace(with_joint, model=replace(model, remember_tasks=False)), tmp_path / "cache")
    assert "are remembered" not in caplog.text


def test_two_numbers_of_patterns_are_refused():
    with pytest.raises(
        LoragenTrainError, match=r"^model\.num_basis is 3, but model\.generator\.num_basis 7; leave one"
    ):
        ModelConfig(num_basis=3, generator=GeneratorConfig(num_basis=7))


def test_a_zoo_of_one_task_starts_as_its_mean(config, make, tmp_path):
    make.manifest(tmp_path / "zoo", ("sums",))
    setup = build_setup(replace(config, data=replace(config.data, zoo=str(tmp_path / "zoo"))), tmp_path / "cache")
    with torch.no_grad():
        generated = setup.module.generator(setup.encoder.encode(["anything"])[None])[0]
    assert generated.abs().max() < 1e-5


@pytest.fixture
def with_joint(tmp_path, make, tiny_lm) -> FitConfig:
    """A zoo that has a joint adapter; a task of it is held out."""
    zoo = tmp_path / "zoo"
    manifest = make.manifest(zoo, TASKS, base_model=tiny_lm, last={"held_out": True})
    write_adapter(make.adapter(99, num_layers=2), zoo / "joint" / "checkpoint-4")
    replace(manifest, joint="joint/checkpoint-4").write()
    return FitConfig(
        data=DataConfig(zoo=str(zoo), cache_dir=str(tmp_path / "cache")),
        model=ModelConfig(output_dim=16, unseen_from="joint"),
        training=TrainingConfig(accelerator="cpu", objective="lm", lm=LmConfig(precision="fp32")),
    )


@pytest.mark.parametrize("scale", [None, 1.0, 0.25])
def test_prompts_of_no_training_task_start_from_the_joint_adapter(with_joint, make, tmp_path, scale):
    if scale is not None:
        with_joint = replace(with_joint, model=replace(with_joint.model, unseen_scale=scale))
    setup = build_setup(with_joint, tmp_path / "cache")
    write_results(setup, with_joint, tmp_path, weights=None, device=torch.device("cpu"))
    bundle = GeneratorBundle.load(tmp_path / FINAL_MODEL)
    with torch.no_grad():
        tokens_NW = bundle.stats.denormalize(bundle.generator(setup.encoder.encode(["junk"] * 5)[None])[0])
    expected_NW = setup.zoo.layout.encode(scale_adapter(make.adapter(99, num_layers=2), scale or 0.7))
    torch.testing.assert_close(tokens_NW, expected_NW, rtol=1e-4, atol=1e-5)
    assert "joint" in setup.provenance()
    for plain in (
        replace(with_joint, model=replace(with_joint.model, unseen_from="ridge")),
        replace(
            with_joint,
            model=replace(with_joint.model, unseen_from="auto"),
            training=replace(with_joint.training, objective="reconstruction"),
        ),
    ):
        setup = build_setup(plain, tmp_path / "cache")
        assert setup.joint is None
        assert "joint" not in setup.provenance()
        assert setup.module.generator.expander.strength == 1


def test_by_default_a_joint_adapter_of_few_tasks_is_no_start(with_joint, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    config = replace(with_joint, model=replace(with_joint.model, unseen_from="auto"))
    assert build_setup(config, tmp_path / "cache").joint is None
    assert "Of 4 training tasks a joint adapter is no start for tasks never seen" in caplog.text
    monkeypatch.setattr("loragen_train.configs.fit.ENOUGH_FOR_JOINT", 4)
    assert build_setup(config, tmp_path / "cache").joint is not None


def test_a_joint_adapter_that_the_objective_has_no_use_for_is_told(with_joint, tmp_path, caplog):
    caplog.set_level("INFO")
    by_weights = replace(with_joint.training, objective="reconstruction")
    config = replace(with_joint, model=replace(with_joint.model, unseen_from="auto"), training=by_weights)
    assert build_setup(config, tmp_path / "cache").joint is None
    assert "The zoo's joint adapter is not used: tasks never seen start from it where all of the training is by lm" in (
        caplog.text
    )


@pytest.mark.parametrize(("trained_on", "is_start"), [(3, False), (4, True), (6, True)])
def test_the_tasks_of_the_joint_adapter_count_and_not_those_of_this_training(
    with_joint, tmp_path, monkeypatch, caplog, trained_on, is_start
):
    """The zoo has four training tasks, one of them without an adapter."""
    caplog.set_level("INFO")
    monkeypatch.setattr("loragen_train.configs.fit.ENOUGH_FOR_JOINT", 4)
    zoo = tmp_path / "zoo"
    manifest = ZooManifest.read(zoo)
    tasks = [replace(task, adapters=[]) if task.name == "more" else task for task in manifest.tasks]
    replace(manifest, tasks=tasks).write()
    names = ["sums", "spelling", "capitals", "gone", "lost", "left"][:trained_on]
    (zoo / "joint" / "training.json").write_text(json.dumps({"settings": {"tasks": dict.fromkeys(names, "")}}))
    config = replace(with_joint, model=replace(with_joint.model, unseen_from="auto"))
    assert (build_setup(config, tmp_path / "cache").joint is not None) is is_start
    assert ("Of 3 training tasks a joint adapter is no start" in caplog.text) is not is_start
    # A task of samples alone may be one that it was trained without.
    assert ("was trained without more." in caplog.text) is is_start


def test_what_only_the_joint_adapter_saw_is_no_task_never_seen(with_joint, tmp_path):
    zoo = tmp_path / "zoo"
    manifest = ZooManifest.read(zoo)
    tasks = [replace(task, failure="diverged") if task.name == "sums" else task for task in manifest.tasks]
    replace(manifest, tasks=tasks).write()
    (sums,) = (task for task in tasks if task.name == "sums")
    for settings in (None, {"settings": {"tasks": {"sums": "", "gone": "", "more": ""}}}):
        if settings is not None:
            (zoo / "joint" / "training.json").write_text(json.dumps(settings))
        setup = build_setup(with_joint, tmp_path / "cache")
        write_results(setup, with_joint, tmp_path / str(settings is None), weights=None, device=torch.device("cpu"))
        seen = GeneratorBundle.load(tmp_path / str(settings is None) / FINAL_MODEL).training_tasks
        gone = set() if settings is None else {"gone"}
        assert set(seen.names) == {"sums", "spelling", "capitals", "more"} | gone
        samples = read_examples(manifest.samples(sums.prompts), need_response=False)
        assert {prompt_hash(sample.prompt) for sample in samples} == seen.sample_hashes["sums"]
        assert not gone & seen.sample_hashes.keys()
        # Validation prompts of the fit were training prompts of the joint adapter, but were not shown.
        assert setup.prompts.train_hashes["more"] == seen.prompt_hashes["more"] < seen.sample_hashes["more"]


@pytest.mark.parametrize("unseen_from", ["joint", "ridge"])
def test_the_zoo_that_a_generator_was_trained_on_can_be_evaluated_on(with_joint, tmp_path, unseen_from, questions):
    zoo = tmp_path / "zoo"
    # A test example of one task is a sample of another, as generators of questions repeat themselves.
    manifest = ZooManifest.read(zoo)
    samples = zoo / "train" / "sums.jsonl"
    row = {"prompt": questions["more"][40], "response": "yes"}
    samples.write_text(samples.read_text(encoding="utf-8") + json.dumps(row) + "\n", encoding="utf-8")
    changed = [
        replace(task, prompts=SampleFile.of(samples, zoo)) if task.name == "sums" else task for task in manifest.tasks
    ]
    replace(manifest, tasks=changed).write()
    config = replace(with_joint, model=replace(with_joint.model, unseen_from=unseen_from))
    setup = build_setup(config, tmp_path / "cache")
    write_results(setup, config, tmp_path, weights=None, device=torch.device("cpu"))
    trained = GeneratorBundle.load(tmp_path / FINAL_MODEL).training_tasks
    training = Training(tasks=trained, means=None)
    asked = with_tasks_of_zoo(EvaluateConfig(model="m", zoo=str(zoo), rows=["base"]), str(zoo), trained)
    found = {task.name: read_inputs(task, asked, shown=training.shown, seen=training.seen) for task in asked.tasks}
    assert found.keys() == set(TASKS)
    for name in ("sums", "spelling", "capitals", "more"):
        assert set(found[name].prompts) - {row["prompt"]} == set(setup.prompts.val[name])
    assert {name: inputs.num_seen for name, inputs in found.items() if inputs.num_seen} == {"more": 1}
    for inputs in found.values():
        training.check(inputs)


def test_a_training_that_is_resumed_starts_from_what_it_began_with(with_joint, tmp_path):
    begun = build_setup(with_joint, tmp_path / "cache").provenance()
    zoo = tmp_path / "zoo"
    assert build_setup(with_joint, tmp_path / "cache", before=begun).joint is not None
    # One that was begun before there was a scale wrote of the same adapter; what it starts from lies in its checkpoint.
    whole = replace(with_joint, model=replace(with_joint.model, unseen_scale=1.0))
    assert build_setup(whole, tmp_path / "cache", before=begun).provenance()["joint"] == begun["joint"]
    # It was begun before there was a joint adapter.
    assert build_setup(with_joint, tmp_path / "cache", before={**begun, "joint": None}).joint is None
    with pytest.raises(LoragenTrainError, match="is not the one that the training was begun with"):
        build_setup(with_joint, tmp_path / "cache", before={**begun, "joint": "another"})
    replace(ZooManifest.read(zoo), joint=None).write()
    with pytest.raises(LoragenTrainError, match="but it has none"):
        build_setup(with_joint, tmp_path / "cache", before=begun)


def test_too_few_tasks_to_learn_from_beside_a_joint_adapter_are_told(with_joint, tmp_path, caplog):
    export = ExportConfig(weights="last")
    config = replace(with_joint, output_dir=str(tmp_path / "experiments"), export=export)
    expander = GeneratorBundle.load(fit(config)).generator.expander
    assert len(expander.corrections) == 0
    assert expander.strength != 0
    assert "Of 4 training tasks nothing is learned for tasks never seen but" in caplog.text
    assert "The joint adapter has seen" not in caplog.text
    unwatched = replace(config.training, unseen=UnseenConfig(enabled=False))
    build_setup(replace(config, training=unwatched, export=ExportConfig()), tmp_path / "cache")
    assert "The joint adapter has seen the answers that val_loss is of" in caplog.text


def test_training_leaves_the_joint_adapter_as_it_is(with_joint, tmp_path, monkeypatch):
    monkeypatch.setattr("loragen_train.configs.fit._FEW_TASKS", 0)
    training = replace(with_joint.training, max_epochs=2, learning_rate=1e-2)
    config = replace(with_joint, training=training, output_dir=str(tmp_path / "experiments"))
    start = build_setup(config, tmp_path / "cache").module.generator.expander
    trained = GeneratorBundle.load(fit(config)).generator.expander
    assert len(trained.corrections) == 1
    assert torch.equal(trained.shared, start.shared)
    assert trained.corrections.abs().max() > 0
    assert trained.strength != 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("none", r"^Tasks never seen are to start from the joint adapter of .*, but it has none; train it with"),
        ("shape", r"^The joint adapter of the zoo cannot be used: .*; set model\.unseen_from to ridge .*\.$"),
        ("broken", r"^The joint adapter of the zoo cannot be used: .*; set model\.unseen_from to ridge .*\.$"),
        ("nan", r"^The joint adapter of the zoo cannot be used: .*NaN.*; set model\.unseen_from to ridge .*\.$"),
        ("seen", r"^The joint adapter .*checkpoint-4 was trained on last, held out by now; .*ridge\.$"),
    ],
)
def test_a_joint_adapter_that_cannot_be_used_is_one_sentence(with_joint, make, tmp_path, change, said):
    zoo, joint = tmp_path / "zoo", tmp_path / "zoo" / "joint" / "checkpoint-4"
    if change == "none":
        replace(ZooManifest.read(zoo), joint=None).write()
    elif change == "shape":
        write_adapter(make.adapter(99, num_layers=2, r=3), joint, overwrite=True)
    elif change == "broken":
        (joint / "adapter_model.safetensors").write_bytes(b"\x00")
    elif change == "nan":
        file = joint / "adapter_model.safetensors"
        save_file({name: tensor * torch.nan for name, tensor in load_file(file).items()}, file)
    else:
        settings = {"settings": {"tasks": {"sums": "", "last": ""}}}
        (joint.parent / "training.json").write_text(json.dumps(settings))
    config = replace(with_joint, model=replace(with_joint.model, unseen_from="joint"))
    with pytest.raises(LoragenTrainError, match=said):
        build_setup(config, tmp_path / "cache")


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_makes_no_adapter_is_refused(scale):
    with pytest.raises(LoragenTrainError, match=r"^model\.unseen_scale is .*, but must be above 0\.$"):
        ModelConfig(unseen_scale=scale)


def test_a_joint_adapter_is_asked_for_only_where_unseen_tasks_are_told_apart(with_joint):
    model = replace(with_joint.model, unseen_from="joint")
    with pytest.raises(LoragenTrainError, match=r"^model\.unseen_from is joint, but this generator remembers no tasks"):
        replace(with_joint, model=replace(model, remember_tasks=False))
    with pytest.raises(LoragenTrainError, match=r"^model\.unseen_from is joint, but there is no data\.zoo"):
        replace(with_joint, model=model, data=DataConfig(checkpoint_dir="adapters"))
