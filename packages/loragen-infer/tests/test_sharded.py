"""Sharded runs on a local Ray cluster of two workers: the bytes of one process, whatever dies on the way."""

import json
import logging
import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from loragen_infer import AdapterStore, LoragenInferError, read_sharded
from loragen_infer.cli.main import main
from loragen_infer.generation.config import GenerateConfig
from loragen_infer.sharded import ShardedConfig, run_sharded
from loragen_infer.sharded import run as sharded_run
from loragen_infer.sharded.prompt_source import find_files, plan_shards
from loragen_infer.sharded.worker import ShardMaker
from safetensors import safe_open

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
psutil = pytest.importorskip("psutil")

NUM_TASKS, SHARD_SIZE, BATCH_SIZE = 118, 4, 2


@pytest.fixture(scope="module")
def ray():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with two files: JSON lines, and Parquet."""
    folder = tmp_path_factory.mktemp("source")
    rows = [{"prompts": [f"What is {task} + {index}?" for index in range(1 + task % 3)]} for task in range(NUM_TASKS)]
    cut = 51
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:cut]), encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows[cut:]), folder / "b.parquet", row_group_size=20)
    return folder


def options_of(zoo, source, output, **changes):
    values = {"model": str(zoo.experiment), "prompt_file": str(source), "output": str(output), "batch_size": BATCH_SIZE}
    return GenerateConfig(**{**values, **changes})


def sharded(config, **changes):
    return ShardedConfig(generate=config, **{"shard_size": SHARD_SIZE, "num_workers": 2, **changes})


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


@pytest.fixture(scope="module")
def one_process(zoo, generator, source):
    """What one process makes of all: the adapters by id."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        shards = plan_shards(find_files(str(source)), shard_size=SHARD_SIZE)
        requests = [request for shard in shards for request in shard.read()]
        adapters = generator.generate_many((request.prompts for request in requests), batch_size=BATCH_SIZE)
        return {request.id: adapter for request, adapter in zip(requests, adapters, strict=True)}
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(ray, zoo, source, tmp_path_factory):
    """The folder of a run of which one worker was killed in the middle, and what was finished at that moment."""
    output = tmp_path_factory.mktemp("finished") / "out"
    before: dict[str, bytes] = {}
    killed: list[psutil.Process] = []

    def kill_a_worker():
        while len(list(output.glob("shards/*.parquet"))) < 3:
            time.sleep(0.01)
        workers = [
            process
            for process in psutil.Process().children(recursive=True)
            if "ray::MapWorker" in " ".join(process.cmdline())
        ]
        before.update((path.name, path.read_bytes()) for path in output.glob("shards/*.parquet"))
        workers[0].kill()
        killed.append(workers[0])

    killer = threading.Thread(target=kill_a_worker, daemon=True)
    killer.start()
    outcome = run_sharded(sharded(options_of(zoo, source, output)))
    killer.join(timeout=10)
    assert len(killed) == 1  # what the thread could not do, it does not tell
    assert not killed[0].is_running()
    assert (outcome.num_made, outcome.num_kept) == (NUM_TASKS, 0)
    return output, before


def test_a_worker_killed_in_the_middle_changes_nothing(finished, one_process, zoo, generator, tmp_path):
    output, before = finished
    assert 3 <= len(before) < -(-NUM_TASKS // SHARD_SIZE)
    after = contents(output)
    assert all(after[name] == content for name, content in before.items())
    assert not [path for path in output.rglob(".*") if path.name != ".lock"]
    manifest = parquet.read_table(output / "manifest.parquet").to_pylist()
    assert [row["id"] for row in manifest] == list(one_process)
    assert {(row["scale"], row["base_model"]) for row in manifest} == {(1.0, str(zoo.model))}
    assert [row["num_prompts"] for row in manifest] == [1 + task % 3 for task in range(NUM_TASKS)]
    assert len({row["fingerprint"] for row in manifest}) == NUM_TASKS
    store = AdapterStore(tmp_path / "store", generator)
    assert manifest[0]["fingerprint"] == store.id_of(["What is 0 + 0?"])
    for row in manifest:
        expected = one_process[row["id"]]
        with safe_open(output / row["shard"], framework="pt") as reader:
            for name, tensor in expected.tensors.items():
                assert torch.equal(reader.get_tensor(f"{row['id']}/{name}"), tensor)


def test_one_adapter_comes_out_as_it_went_in(finished, one_process, tmp_path):
    output, _ = finished
    adapter = read_sharded(output, "000077")
    assert adapter.config == one_process["000077"].config
    assert all(torch.equal(tensor, one_process["000077"].tensors[name]) for name, tensor in adapter.tensors.items())
    adapter.save_pretrained(tmp_path / "mine")
    with pytest.raises(LoragenInferError, match="no adapter '77'"):
        read_sharded(output, "77")
    with pytest.raises(LoragenInferError, match=r"has no manifest\.parquet"):
        read_sharded(tmp_path, "000077")


def test_the_lines_of_the_documentation_run(finished, tmp_path, monkeypatch):
    text = (Path(__file__).parents[3] / "docs/how-to/ray.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("shards").symlink_to(finished[0])
    exec(compile(code.replace('"sums"', '"000077"'), "ray.md", "exec"), {})
    assert Path("my-adapter/adapter_model.safetensors").is_file()


def test_a_manifest_cannot_lead_out_of_its_folder(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "out")
    rows = [{"id": "a", "shard": "../secret.safetensors"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "out" / "manifest.parquet")
    with pytest.raises(LoragenInferError, match="none is called"):
        read_sharded(tmp_path / "out", "a")


def test_a_run_that_ended_early_goes_on_with_what_is_missing(finished, zoo, source, tmp_path, capsys):
    output = tmp_path / "out"
    shutil.copytree(finished[0], output)
    (output / "manifest.parquet").unlink()
    (output / "shards" / "shard-000001.parquet").unlink()  # killed before the list was written
    for suffix in ("parquet", "safetensors"):
        (output / "shards" / f"shard-000005.{suffix}").unlink()
    cut_off = output / "shards" / "shard-000007.safetensors"
    cut_off.write_bytes(cut_off.read_bytes()[:-1])
    kept = {name: path.stat().st_mtime_ns for name in contents(output) if (path := output / "shards" / name).exists()}
    words = ["--model", zoo.experiment, "--prompt-file", source, "--output", output, "--batch-size", BATCH_SIZE]
    words += ["--ray", "--shard-size", SHARD_SIZE, "--num-workers", 1]
    assert main(["generate", *map(str, words)]) == 0
    assert f"12 adapters made, {NUM_TASKS - 12} were there already" in capsys.readouterr().out
    assert contents(output) == contents(finished[0])
    assert (output / "manifest.parquet").read_bytes() == (finished[0] / "manifest.parquet").read_bytes()
    changed = {name for name, seen in kept.items() if (output / "shards" / name).stat().st_mtime_ns != seen}
    assert changed == {"shard-000001.safetensors", "shard-000007.parquet", "shard-000007.safetensors"}


def test_input_that_changes_after_it_was_checked_is_refused(ray, zoo, source, generator, tmp_path, monkeypatch):
    path = shutil.copy(source / "a.jsonl", tmp_path)

    def load_meanwhile(config):
        Path(path).write_text(Path(path).read_text().replace("What", "When"))
        return generator

    monkeypatch.setattr("loragen_infer.sharded.run.load_generator", load_meanwhile)
    with pytest.raises(LoragenInferError, match=r"a\.jsonl changed after it was checked"):
        run_sharded(sharded(options_of(zoo, path, tmp_path / "out"), num_workers=1))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "adapter_config.json"]


def test_other_work_in_the_folder_is_left_alone(finished, zoo, source, make, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished[0], output)
    before = contents(output)
    for options in ({"scale": 2.0}, {"batch_size": 4}, {"prompt_file": str(source / "a.jsonl")}):
        with pytest.raises(LoragenInferError, match="was not made from the same prompts, model and options"):
            run_sharded(sharded(options_of(zoo, source, output, **options)))
    with FileLock(output / ".lock"), pytest.raises(LoragenInferError, match="Another process is writing to"):
        run_sharded(sharded(options_of(zoo, source, output)))
    assert contents(output) == before
    # The shards of the first file, and the last one of all, as where a killed run had finished that early.
    num_shards = len(plan_shards([source / "a.jsonl"], shard_size=SHARD_SIZE))
    numbers = {path: int(path.stem.removeprefix("shard-")) for path in (output / "shards").iterdir()}
    for path, number in numbers.items():
        if num_shards <= number < max(numbers.values()):
            path.unlink()
    with pytest.raises(LoragenInferError, match="was not made from the same prompts, model and options"):
        run_sharded(sharded(options_of(zoo, source / "a.jsonl", output)))
    with pytest.raises(LoragenInferError, match=r"holds adapter_model\.safetensors"):
        run_sharded(sharded(options_of(zoo, source, zoo.adapters[0])))
    rows = make.rows(tmp_path / "bad.jsonl", [{"prompt": "1"}, {"prompt": 2}])
    with pytest.raises(LoragenInferError, match=r"bad\.jsonl, line 2"):
        run_sharded(sharded(options_of(zoo, rows, tmp_path / "new")))
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]
    with pytest.raises(LoragenInferError, match="can name the tensors of"):
        run_sharded(sharded(options_of(zoo, source, tmp_path / "new"), shard_size=10**7))


def test_what_a_worker_refuses_is_one_sentence_and_nothing_is_half_written(zoo, source, generator, tmp_path):
    [shard, *_] = plan_shards([source / "a.jsonl"], shard_size=SHARD_SIZE)
    for mark, scale, words in (("0" * 16, 1.0, "another generator on a worker"), (None, 1e39, "would hold NaN or Inf")):
        config = options_of(zoo, source, tmp_path / "out", scale=scale)
        row = ShardMaker(config, mark or generator.fingerprint)({"shard": [shard.to_json()], "fingerprint": ["f"]})
        assert words in row["error"][0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a", "--ray"], "give --prompt-file"),
        (["--prompt-file", "-", "--ray"], "give --prompt-file"),
        (["--prompt-file", "a.jsonl", "--ray", "--format", "pt"], "leave --format away"),
        (["--prompt-file", "a.jsonl", "--ray", "--shard-size", "100"], "a multiple of --batch-size (16) belongs"),
        (["--prompt-file", "a.jsonl", "--ray", "--num-workers", "0"], "--num-workers is 0"),
        (["--prompt-file", "a.jsonl", "--ray", "--device", "cuda:1"], "Ray chooses among the GPUs"),
        (["--prompt-file", "a.jsonl", "--num-workers", "2"], "--num-workers goes with --ray only"),
    ],
)
def test_options_that_do_not_go_together_are_a_usage_error(words, message, tmp_path, capsys):
    assert main(["generate", "--model", "none", "--output", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path(tmp_path / "out").exists()


def test_workers_for_gpus_that_nobody_has_are_not_waited_for(ray, zoo, source, tmp_path, caplog):
    generate = options_of(zoo, source, tmp_path, device="cuda")
    config = ShardedConfig(generate=generate, shard_size=SHARD_SIZE, num_workers=2)
    # Of a cluster of its own there will never be more.
    with pytest.raises(LoragenInferError, match=r"The Ray cluster has no GPU; give another --device"):
        sharded_run._num_workers(config, is_on_gpu=True, is_own=True)
    with caplog.at_level(logging.WARNING):
        assert sharded_run._num_workers(config, is_on_gpu=True, is_own=False) == 2
    assert "The Ray cluster has no GPU yet; the work begins once it has." in caplog.text
