"""One zoo by several processes: none trains what another has trained or trains, and all is there at the end."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from loragen_infer.files import locked
from loragen_infer.zoo import ZooManifest
from loragen_train.configs.collect import CollectConfig, CollectTask
from loragen_train.zoo import collect as collect_module
from loragen_train.zoo.collect import collect
from loragen_train.zoo.process import share_of_tasks

# A line for every training that ends, and steps slow enough for the processes to meet.
WATCH = """
import time
from loragen_train.zoo import groups, train_lora
advance, write_adapter = train_lora._Run.advance, groups._write_adapter
def slow(self):
    time.sleep({pause})
    advance(self)
def tell(folder, *args):
    print("made", folder.name, file=sys.stderr)
    write_adapter(folder, *args)
train_lora._Run.advance, groups._write_adapter = slow, tell
"""

# The first step waits until as many processes have come to theirs.
MEET = """
import os
from pathlib import Path
def meet(self):
    Path({folder!r}, str(os.getpid())).touch()
    while len(os.listdir({folder!r})) < {num_processes}:
        time.sleep(0.01)
    slow(self)
train_lora._Run.advance = meet
"""


@pytest.fixture
def config(make, questions, collect_config, tmp_path) -> CollectConfig:
    """Eight tasks to train, two at once, and one held out."""
    tasks = []
    for name in ("sums", "spelling", "capitals", "more"):
        for half in range(2):
            file = make.samples(tmp_path / f"{name}{half}.jsonl", questions[name][24 * half : 24 * half + 24])
            tasks.append(CollectTask(name=f"{name}{half}", source=str(file), num_train=16, num_test=4))
    held_out = CollectTask(name="gcd", source="reasoning-gym:gcd", num_train=16, num_test=4, held_out=True)
    training = replace(collect_config.training, max_steps=4, save_every=2, adapters_at_once=2)
    return replace(
        collect_config,
        output_dir=str(tmp_path / "zoo"),
        tasks=[*tasks, held_out],
        lora=replace(collect_config.lora, lora_dropout=0.0),
        training=training,
    )


def made(said: str) -> list[str]:
    return re.findall(r"^made (\S+)$", said, flags=re.MULTILINE)


def assert_complete(config: CollectConfig, *, joint: bool = False) -> None:
    root = Path(config.output_dir)
    manifest = ZooManifest.read(root)
    assert [task.name for task in manifest.tasks] == [task.name for task in config.tasks]
    for task in manifest.tasks:
        for file, number in ((task.prompts, 16), (task.test, 4)):
            assert manifest.samples(file).is_file()
            assert file.num_samples == number
        assert task.failure is None
        assert task.adapters == (
            [] if task.held_out else [f"adapters/{task.name}/checkpoint-{step}" for step in (2, 4)]
        )
        assert (task.quality is None) == task.held_out
        for adapter in task.adapters:
            assert (manifest.path(adapter) / "adapter_model.safetensors").is_file()
    assert (manifest.joint is not None) == joint
    assert not (root / "unfinished").exists()
    assert [path for path in (root / "adapters").iterdir() if path.name.startswith(".")] == []


def test_a_process_that_sets_up_keeps_no_task_from_another(config, monkeypatch):
    """Reading sources takes long; a process that is past that trains what it likes in the meantime."""
    write_jsonl = collect_module.write_jsonl
    others = []

    def write(path, rows):
        write_jsonl(path, rows)
        for task in config.tasks:
            if task.name != path.stem:
                with locked(Path(config.output_dir) / ".locks", "", name=f"{task.name}.lock"):
                    others.append(task.name)

    monkeypatch.setattr(collect_module, "write_jsonl", write)
    collect(replace(config, tasks=config.tasks[:3]))
    assert len(set(others)) == 9


@pytest.mark.parametrize("num_processes", [1, 2])
def test_processes_share_the_tasks_and_train_none_twice(make, config, tmp_path, num_processes):
    """Both start at the same time; where they wait for each other, both are in the midst of a training at once."""
    (tmp_path / "meet").mkdir()
    code = WATCH.format(pause=0) + MEET.format(folder=str(tmp_path / "meet"), num_processes=num_processes)
    processes = [make.collect(config, code=code) for _ in range(2)]
    try:
        said = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    assert sorted([*made(said[0]), *made(said[1])]) == sorted(task.name for task in config.tasks if not task.held_out)
    assert min(len(made(text)) for text in said) >= (2 if num_processes == 2 else 0)
    assert_complete(config)


def test_a_task_that_another_process_holds_is_left_to_it(config, caplog):
    root = Path(config.output_dir)
    with locked(root / ".locks", "", name="sums0.lock"), caplog.at_level("INFO"):
        # Its samples are not there yet either, so it can be neither trained nor found whole.
        (root / "train").mkdir(parents=True)
        (root / "test").mkdir()
        source = Path(config.tasks[0].source).read_bytes().splitlines(keepends=True)
        (root / "train" / "sums0.jsonl").write_bytes(b"".join(source[:16]))
        (root / "test" / "sums0.jsonl").write_bytes(b"".join(source[16:20]))
        before = (root / "train" / "sums0.jsonl").read_bytes()
        folders = collect(config)
    assert len(folders) == 7
    assert "In the hands of another process: sums0." in caplog.text
    assert (root / "train" / "sums0.jsonl").read_bytes() == before
    assert ZooManifest.read(root).task("sums0").adapters == []
    assert len(collect(config)) == 8
    assert_complete(config)


def test_a_second_process_waits_for_the_first_to_set_up(make, config):
    root = Path(config.output_dir)
    with locked(root, None):
        process = make.collect(config)
        time.sleep(3)
        assert process.poll() is None
        assert not (root / "initial_adapter").exists()
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert_complete(config)


def test_the_group_of_a_process_that_was_killed_is_taken_over(make, config):
    root = Path(config.output_dir)
    process = make.collect(config, code=WATCH.format(pause=0.5))
    deadline = time.monotonic() + 120
    while not list(root.glob("unfinished/*/state.ckpt")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.kill()
    process.communicate()
    (begun,) = root.glob("unfinished/*/begun.json")
    group = list(json.loads(begun.read_text())["tasks"])
    process = make.collect(config, code=WATCH.format(pause=0))
    _, said = process.communicate(timeout=200)
    assert f"{', '.join(group)}: going on after step 2." in said
    assert_complete(config)


def test_shards_make_the_zoo_together_in_any_order(config):
    parts = [collect(replace(config, shard=f"{part}/2")) for part in (2, 1)]
    names = [task.name for task in config.tasks if not task.held_out]
    assert [[folder.name for folder in part] for part in parts] == [names[1::2], names[::2]]
    assert_complete(config)


def test_a_zoo_in_shards_says_what_is_missing(config):
    collect(replace(config, shard="1/2"))
    manifest = ZooManifest.read(config.output_dir)
    names = [task.name for task in config.tasks]
    assert [task.name for task in manifest.tasks] == names
    assert [task.name for task in manifest.tasks if task.adapters or task.held_out] == names[::2]
    assert [task.name for task in manifest.tasks if task.prompts is not None] == names[::2]


@pytest.fixture
def no_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_rank")
@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")])
def test_a_rank_has_its_share_of_the_tasks(config, monkeypatch, names):
    assert share_of_tasks(config) == config.tasks
    shares = []
    for rank in range(4):
        for name, value in zip(names, (rank, 4), strict=True):
            monkeypatch.setenv(name, str(value))
        shares.append(share_of_tasks(config))
    assert shares == [config.tasks[rank::4] for rank in range(4)]
    # What is asked for counts more.
    assert share_of_tasks(replace(config, shard="3/3")) == config.tasks[2::3]
    monkeypatch.delenv(names[1])
    assert share_of_tasks(config) == config.tasks


@pytest.mark.usefixtures("no_rank")
def test_a_batch_script_without_srun_has_all_tasks(config, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert share_of_tasks(config) == config.tasks


@pytest.mark.usefixtures("no_rank")
def test_ranks_collect_one_zoo(make, config):
    processes = [
        make.collect(config, code=WATCH.format(pause=0), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
        for rank in range(2)
    ]
    said = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    names = [task.name for task in config.tasks if not task.held_out]
    assert [sorted(made(text)) for text in said] == [sorted(names[::2]), sorted(names[1::2])]
    assert_complete(config)
