"""Training from a zoo.json: which tasks count, what they bring along, and what the bundle then knows of them."""

import pytest
import yaml
from loragen_infer import GeneratorBundle, LoragenInferError
from loragen_infer.bundle import find_bundle
from loragen_infer.samples import prompt_hash
from loragen_infer.zoo import SampleFile, TaskQuality
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, ModelConfig, TaskConfig
from loragen_train.prompts.table import read_prompts
from loragen_train.zoo.tokens import read_zoo
from loragen_train.zoo.training_data import read_training_data

TASKS = ("sums", "spelling", "capitals")


def names(data: DataConfig) -> list[str]:
    return [task.name for task in read_training_data(data).data.tasks]


def quality(gain: float) -> dict:
    return {"quality": TaskQuality(nll=1.0, base_nll=1.0 + gain)}


def test_the_zoo_says_which_tasks_there_are_and_where_their_parts_lie(tmp_path, make, caplog):
    make.manifest(tmp_path, TASKS, capitals={"held_out": True})
    with caplog.at_level("INFO"):
        training = read_training_data(DataConfig(zoo=str(tmp_path)))
    assert [(task.name, task.prompts) for task in training.data.tasks] == [
        (name, str(tmp_path / "train" / f"{name}.jsonl")) for name in ("sums", "spelling")
    ]
    assert training.held_out == ["capitals"]
    assert "Held out: capitals." in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    zoo = read_zoo(training.data, ModelConfig(output_dim=16), ["sums", "spelling"], tmp_path / "cache")
    assert [entry["path"] for entry in zoo.tokens.entries] == [
        str(tmp_path / "adapters" / name / f"checkpoint-{number}") for name in ("sums", "spelling") for number in (1, 2)
    ]


def test_each_checkpoint_may_lie_anywhere_and_the_last_ones_are_taken(tmp_path, make):
    files = [tmp_path / "adapters" / "sums" / f"checkpoint-{number}" for number in (3, 1)]
    file = files[1] / "adapter_model.safetensors"
    make.manifest(tmp_path, ("sums",), num_checkpoints=3, sums={"adapters": [str(files[0]), str(files[1]), str(file)]})
    data = read_training_data(DataConfig(zoo=str(tmp_path), max_checkpoints=2, lora_alpha=4)).data
    zoo = read_zoo(data, ModelConfig(output_dim=16), ["sums"], tmp_path / "cache")
    assert [entry["path"] for entry in zoo.tokens.entries] == [str(files[1]), str(file)]


def test_a_prompt_is_one_sample_of_a_zoo_and_four_of_other_files(tmp_path, make):
    make.manifest(tmp_path, ("sums",))
    prompts = read_prompts(read_training_data(DataConfig(zoo=str(tmp_path))).data, seed=0)
    assert (len(prompts.train["sums"]), len(prompts.val["sums"])) == (36, 4)
    chosen = read_training_data(DataConfig(zoo=str(tmp_path), samples_per_prompt=5)).data
    assert len(read_prompts(chosen, seed=0).train["sums"]) == 7
    task = TaskConfig(name="sums", checkpoint_dir="x", prompts=str(tmp_path / "train" / "sums.jsonl"))
    assert len(read_prompts(DataConfig(tasks=[task]), seed=0).train["sums"]) == 9


def test_test_examples_of_any_task_are_in_no_prompt(tmp_path, make, questions, caplog):
    leaked = make.samples(tmp_path / "leaked.jsonl", questions["sums"][:5])
    held_out = {"held_out": True, "test": SampleFile.of(leaked, tmp_path)}
    make.manifest(tmp_path, ("sums", "capitals"), capitals=held_out)
    training = read_training_data(DataConfig(zoo=str(tmp_path)))
    with caplog.at_level("INFO"):
        prompts = read_prompts(training.data, seed=0, leave_out=training.test_hashes)
    shown = {*prompts.train["sums"], *prompts.val["sums"]}
    assert shown <= set(questions["sums"][5:40])
    assert "sums: 35 samples; not used: 5 test examples." in caplog.text


def test_what_cannot_be_trained_on_is_named_in_one_warning(tmp_path, make, caplog):
    changes = {
        "sums": {"adapters": []},
        "spelling": {"failure": "the loss was NaN at step 12", "adapters": []},
        "capitals": {"prompts": None},
        "last": {"held_out": True, "adapters": []},
    }
    make.manifest(tmp_path, (*TASKS, "more", "last"), **changes)
    assert names(DataConfig(zoo=str(tmp_path))) == ["more"]
    (warning,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert warning == (
        "Left out 3 tasks of the zoo that cannot be trained on: sums (it has no adapter), spelling (the loss was NaN "
        "at step 12), capitals (it has no prompts)."
    )


@pytest.mark.parametrize(
    ("min_gain", "kept"),
    [(0.0, ["capitals", "more"]), (0.2, ["more"]), (-0.6, ["sums", "spelling", "capitals", "more"]), (None, None)],
)
def test_adapters_that_gain_too_little_are_left_out_by_name(tmp_path, make, caplog, min_gain, kept):
    every = (*TASKS, "more", "last")
    changes = {"sums": quality(0.0), "spelling": quality(-0.5), "capitals": quality(0.1), "last": quality(float("nan"))}
    make.manifest(tmp_path, every, **changes)
    assert names(DataConfig(zoo=str(tmp_path), min_gain=min_gain)) == (list(every) if kept is None else kept)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (kept is not None)
    if min_gain == 0.0:
        assert warnings == [
            "Left out 3 tasks of the zoo whose gain in nats per response token is not above data.min_gain=0.0: "
            "sums (0), spelling (-0.5), last (nan)."
        ]


def test_a_zoo_with_nothing_left_is_refused(tmp_path, make):
    make.manifest(tmp_path, TASKS, sums={"held_out": True}, spelling={"adapters": []}, capitals=quality(0.1))
    with pytest.raises(
        LoragenTrainError,
        match=r"zoo\.json has no task to train on: of 3 tasks, 1 are held out, 1 lack adapters or prompts, and 1 do",
    ):
        read_training_data(DataConfig(zoo=str(tmp_path), min_gain=0.2))


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_file_of_samples_that_is_another_one_now_is_refused(tmp_path, make, part):
    make.manifest(tmp_path)
    file = tmp_path / part / "spelling.jsonl"
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(LoragenInferError, match=rf"{part}/spelling\.jsonl has been changed since .*zoo\.json was wri"):
        read_training_data(DataConfig(zoo=str(tmp_path)))
    file.unlink()
    with pytest.raises(LoragenInferError, match=rf"{part}/spelling\.jsonl, which .*zoo\.json names, cannot be read"):
        read_training_data(DataConfig(zoo=str(tmp_path)))


@pytest.mark.parametrize("other", [{"checkpoint_dir": "x"}, {"tasks": [TaskConfig(name="a", checkpoint_dir="x")]}])
def test_a_zoo_and_tasks_exclude_each_other(other):
    with pytest.raises(LoragenTrainError, match=r"^data\.zoo names all tasks and checkpoints; leave data\.tasks and"):
        DataConfig(zoo="zoo", **other)


def test_fit_needs_nothing_but_the_zoo(tmp_path, make, questions, capsys):
    make.manifest(tmp_path / "zoo", TASKS, capitals={"held_out": True}, spelling=quality(-1.0))
    small = ["--model.hidden-dim=16", "--model.output-dim=16", "--model.num-hyperconv-blocks=1"]
    short = ["--training.max-epochs=2", "--training.accelerator=cpu", "--logging.tensorboard=false"]
    folders = [f"--output-dir={tmp_path}/experiments", f"--data.cache-dir={tmp_path}/cache"]
    assert make.cli("fit", "--zoo", str(tmp_path / "zoo"), *small, *short, *folders) == 0
    (experiment,) = (tmp_path / "experiments").iterdir()
    known = GeneratorBundle.load(find_bundle(experiment)).training_tasks
    assert known.names == ("sums",)
    # A prompt is one sample, so whatever is no validation prompt was trained on.
    assert len(known.prompt_hashes["sums"]) == 36
    assert known.prompt_hashes["sums"] < set(map(prompt_hash, questions["sums"][:40]))
    recorded = yaml.safe_load((experiment / "config.yaml").read_text(encoding="utf-8"))
    assert (recorded["data"]["zoo"], recorded["data"]["tasks"]) == (str(tmp_path / "zoo"), [])
    assert recorded["provenance"]["held_out"] == ["capitals"]
    capsys.readouterr()
    assert make.cli("fit", "--config", str(experiment / "config.yaml"), "--dry-run") == 0
    assert "2 checkpoints" in capsys.readouterr().out


def test_what_collect_writes_can_be_trained_on(collected, tmp_path, make, capsys):
    zoo = f"--zoo={collected.root}"
    options = [f"--output-dir={tmp_path}/experiments", f"--data.cache-dir={tmp_path}/cache", "--data.min-gain=null"]
    small = [
        "--model.hidden-dim=16",
        "--model.output-dim=16",
        "--model.num-hyperconv-blocks=1",
        "--model.kernel-size=1",
    ]
    assert make.cli("fit", zoo, *options, *small, "--training.accelerator=cpu", "--dry-run") == 0
    assert "6 checkpoints" in capsys.readouterr().out
    training = read_training_data(DataConfig(zoo=str(collected.root), min_gain=None))
    assert [task.name for task in training.data.tasks] == ["sums", "spelling"]
    assert training.held_out == ["gcd"]
    assert len(training.test_hashes) == 12
