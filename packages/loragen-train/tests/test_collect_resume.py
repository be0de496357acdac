"""Collecting that is stopped at any moment, in this process or in another, and goes on to the same bits."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from loragen_infer.zoo import ZooManifest
from loragen_train import LoragenTrainError
from loragen_train.configs.collect import CollectConfig, CollectTask
from loragen_train.zoo import groups, train_lora
from loragen_train.zoo.collect import collect

# Their trainings take the same course, but for time.
TIMES = ("seconds", "cpu_seconds", "tokens_per_second")
# A step that takes its time, so that a signal finds the training where it is meant to.
SLOW = """
import time
from loragen_train.zoo import train_lora
advance = train_lora._Run.advance
def slow(self):
    time.sleep(0.3)
    advance(self)
train_lora._Run.advance = slow
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory, make, questions, collect_config) -> CollectConfig:
    """Eight tasks, trained at once and with dropout, so that the state of the random numbers matters too."""
    root = tmp_path_factory.mktemp("eight")
    tasks = []
    for name in ("sums", "spelling", "capitals", "more"):
        for half in range(2):
            file = make.samples(root / f"{name}{half}.jsonl", questions[name][24 * half : 24 * half + 24])
            tasks.append(CollectTask(name=f"{name}{half}", source=str(file), num_train=16, num_test=4))
    return replace(collect_config, output_dir=str(root / "zoo"), tasks=tasks)


@pytest.fixture(scope="module")
def zoo(config) -> SimpleNamespace:
    """What an undisturbed run makes."""
    return SimpleNamespace(root=Path(config.output_dir), folders=collect(config))


@pytest.fixture
def same(make, zoo):
    """Check that a folder holds what an undisturbed run makes, and nothing else."""

    def check(root: Path) -> None:
        assert make.weights(root) == make.weights(zoo.root)
        for folder in zoo.folders:
            was, now = (
                json.loads((place / "adapters" / folder.name / "training.json").read_text())
                for place in (zoo.root, root)
            )
            assert {key: value for key, value in was.items() if key not in TIMES} == {
                key: value for key, value in now.items() if key not in TIMES
            }
        assert ZooManifest.read(root).tasks == ZooManifest.read(zoo.root).tasks
        assert not (root / "unfinished").exists()
        assert sorted(path.name for path in (root / "adapters").iterdir()) == sorted(path.name for path in zoo.folders)

    return check


def with_output(config: CollectConfig, folder: Path, **changes: object) -> CollectConfig:
    return replace(config, output_dir=str(folder), **changes)


def wait_for(pattern: str, root: Path, process: subprocess.Popen) -> Path:
    deadline = time.monotonic() + 120
    while not (found := list(root.glob(pattern))) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return found[0]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_at_any_moment_goes_on_to_the_same_bits(make, config, tmp_path, sent, same):
    root = tmp_path / "zoo"
    config = with_output(config, root)
    process = make.collect(config, code=SLOW)
    try:
        checkpoint = wait_for("unfinished/adapters.*/checkpoint-4.safetensors", root, process)
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert said.strip().splitlines()[-1] == "loragen-train collect: interrupted; what is finished is kept."
        assert "Traceback" not in said
    assert not (root / "adapters").exists()
    assert sorted(file.name for file in checkpoint.parent.iterdir() if not file.name.startswith(".")) == [
        "begun.json", *sorted(file.name for file in checkpoint.parent.glob("checkpoint-*")), "state.ckpt"
    ]  # fmt: skip
    # A checkpoint that was written just before the state was to be is no part of it.
    checkpoint.with_name("checkpoint-10.safetensors").write_bytes(b"half")

    process = make.collect(config)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert re.search(r": going on after step (2|4|6)\.", said)
    assert out == "".join(f"{root}/adapters/{task.name}\n" for task in config.tasks)
    same(root)


def test_a_run_that_ends_between_two_adapters_of_a_group_writes_the_rest(config, tmp_path, monkeypatch, same):
    config = with_output(config, tmp_path)
    write_adapter = groups._write_adapter
    written = []

    def write_three(folder, *args):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(folder.name)
        write_adapter(folder, *args)

    with monkeypatch.context() as patch:
        patch.setattr(groups, "_write_adapter", write_three)
        with pytest.raises(KeyboardInterrupt):
            collect(config)
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == sorted(written)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "adapters").rglob("*")}

    def fail(self):
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(train_lora._Run, "advance", fail)
    collect(config)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    same(tmp_path)


def stop_at(step: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    advance = train_lora._Run.advance

    def stop(self):
        if self.step == step:
            raise error
        advance(self)

    monkeypatch.setattr(train_lora._Run, "advance", stop)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("step", [1, 5])
def test_an_interrupted_group_leaves_nothing_half_and_the_next_run_goes_on(
    config, tmp_path, monkeypatch, error, step, same
):
    with monkeypatch.context() as patch:
        stop_at(step, error, patch)
        with pytest.raises(error):
            collect(with_output(config, tmp_path))
    assert not (tmp_path / "adapters").exists()
    collect(with_output(config, tmp_path))
    same(tmp_path)


@pytest.mark.parametrize("damaged", ["state.ckpt", "begun.json"])
@pytest.mark.parametrize("content", [b"half", b"[" * 100_000, None])
def test_a_damaged_state_starts_over(config, tmp_path, monkeypatch, damaged, content, caplog, same):
    with monkeypatch.context() as patch:
        stop_at(5, KeyboardInterrupt, patch)
        with pytest.raises(KeyboardInterrupt):
            collect(with_output(config, tmp_path))
    (file,) = (tmp_path / "unfinished").glob(f"*/{damaged}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)
    collect(with_output(config, tmp_path))
    assert re.search(r"starts over", caplog.text)
    same(tmp_path)


@pytest.mark.parametrize("changed", ["learning_rate", "samples", "tasks"])
def test_a_group_that_was_begun_otherwise_starts_over(config, tmp_path, monkeypatch, changed, caplog, make, same):
    """Begun with the one and gone on with the other, it ends as if the other had never been."""
    begun = with_output(config, tmp_path)
    if changed == "learning_rate":
        begun = replace(begun, training=replace(config.training, learning_rate=3e-2))
    if changed == "tasks":
        begun = replace(begun, tasks=config.tasks[:5])
    if changed == "samples":
        source = make.samples(tmp_path / "other.jsonl", [f"Something else, {number}?" for number in range(24)])
        begun = replace(begun, tasks=[replace(config.tasks[0], source=str(source)), *config.tasks[1:]])
    with monkeypatch.context() as patch:
        stop_at(5, KeyboardInterrupt, patch)
        with pytest.raises(KeyboardInterrupt):
            collect(begun)
    collect(with_output(config, tmp_path))
    if changed != "tasks":
        assert "was begun with other settings or samples, or is damaged; it starts over" in caplog.text
    if changed == "learning_rate":
        same(tmp_path)
    elif changed == "samples":
        record = json.loads((tmp_path / "adapters" / "sums0" / "training.json").read_text())
        samples = (tmp_path / "train" / "sums0.jsonl").read_bytes()
        assert record["samples_sha256"] == hashlib.sha256(samples).hexdigest()
    else:
        groups_of = {
            tuple(json.loads(file.read_text())["trained_with"])
            for file in (tmp_path / "adapters").glob("*/training.json")
        }
        assert sorted(len(group) for group in groups_of) == [3, 5]


def test_a_group_that_diverged_just_before_a_stop_is_refused_after_it(config, tmp_path, monkeypatch):
    training = replace(config.training, learning_rate=1e37)
    config = with_output(config, tmp_path, tasks=config.tasks[:1], training=training)
    with monkeypatch.context() as patch:
        patch.setattr(train_lora._Run, "result", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            collect(config)
    with pytest.raises(LoragenTrainError, match=r"^The training of sums0 diverged"):
        collect(config)
    assert not (tmp_path / "adapters").exists()
    assert not (tmp_path / "unfinished").exists()


def test_what_is_left_of_a_group_whose_adapters_are_all_there_is_removed(config, zoo, same, tmp_path):
    root = Path(shutil.copytree(zoo.root, tmp_path / "zoo"))
    left = root / "unfinished" / f"adapters.{zoo.folders[0].name}"
    left.mkdir(parents=True)
    (left / "begun.json").write_text(json.dumps({"tasks": {folder.name: {} for folder in zoo.folders}}))
    collect(with_output(config, root))
    same(root)
