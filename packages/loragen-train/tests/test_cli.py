"""The command line: exit codes, one-sentence errors, and a --help that waits for nothing heavy."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from loragen_infer import GeneratorBundle
from loragen_train.training.module import GeneratorModule
from loragen_train.zoo import train_lora


@pytest.fixture(scope="module")
def fit_config(tmp_path_factory, make) -> dict:
    root = tmp_path_factory.mktemp("cli")
    return {
        "data": make.zoo(root),
        "model": {"hidden_dim": 16, "output_dim": 16, "num_hyperconv_blocks": 1},
        "training": {"max_epochs": 2, "accelerator": "cpu"},
        "output_dir": str(root / "experiments"),
    }


@pytest.fixture
def fails(make, capsys):
    """Run the command line, check that it ends with the code and one line on standard error, and return the line."""

    def run(code: int, *words: str) -> str:
        capsys.readouterr()
        assert make.cli(*words) == code
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.strip().splitlines()
        return line

    return run


def write_yaml(path: Path, content: object) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize("words", [[], ["collect"], ["prepare"], ["fit"]])
def test_help_has_an_example_and_imports_nothing_heavy(words):
    code = (
        "import sys\n"
        "from loragen_train.cli.main import main\n"
        "try:\n"
        f"    main({[*words, '--help']!r})\n"
        "except SystemExit as stop:\n"
        "    heavy = {'torch', 'lightning', 'transformers', 'peft', 'sentence_transformers'} & set(sys.modules)\n"
        "    sys.exit(f'{stop.code} {heavy}' if stop.code or heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not words or f"example:\n  loragen-train {words[0]}" in done.stdout


def test_prepare_says_what_it_wrote(make, questions, tmp_path, capsys):
    source = make.samples(tmp_path / "sums.jsonl", questions["sums"])
    assert make.cli("prepare", "--source", str(source), "--output-dir", str(tmp_path / "data")) == 0
    assert capsys.readouterr().out == "sums: 48 samples, 11 train prompts and 1 validation prompt\n"


def test_the_config_in_the_folder_repeats_the_run_to_the_bit(make, fit_config, tmp_path, capsys):
    assert make.cli("fit", "--config", write_yaml(tmp_path / "fit.yaml", fit_config)) == 0
    first = Path(capsys.readouterr().out.strip())
    assert make.cli("fit", "--config", str(first / "config.yaml")) == 0
    second = Path(capsys.readouterr().out.strip())
    assert first != second
    one, two = ((folder / "config.yaml").read_text() for folder in (first, second))
    assert one == two
    bundles = [folder / "results" / "final_model" / "generator.safetensors" for folder in (first, second)]
    bundle, again = (GeneratorBundle.load(file) for file in bundles)
    weights, repeated = bundle.generator.state_dict(), again.generator.state_dict()
    assert all(torch.equal(weights[name], repeated[name]) for name in weights)
    assert bundle.fingerprint == again.fingerprint


def test_an_interrupted_fit_exits_130(make, fit_config, tmp_path, capsys, monkeypatch):
    def stop(self, batch, batch_idx):
        raise KeyboardInterrupt

    monkeypatch.setattr(GeneratorModule, "training_step", stop)
    assert make.cli("fit", "--config", write_yaml(tmp_path / "fit.yaml", fit_config)) == 130
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("loragen-train fit: interrupted; what is finished is kept.")


def test_ctrl_c_while_fit_trains_is_one_sentence_and_130(fit_config, tmp_path):
    content = {**fit_config, "training": {"max_epochs": 1_000_000, "accelerator": "cpu"}, "output_dir": str(tmp_path)}
    config = write_yaml(tmp_path / "fit.yaml", content)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    log = tmp_path / "stderr.txt"
    with log.open("w") as stderr:
        words = [sys.executable, "-m", "loragen_train.cli", "fit", "--config", config]
        process = subprocess.Popen(words, stderr=stderr, env=environment)
        try:
            deadline = time.monotonic() + 60
            # The losses reach the disk when the training is some steps old, and only then.
            while process.poll() is None and time.monotonic() < deadline and not list(tmp_path.rglob("metrics.csv")):
                time.sleep(0.1)
            assert process.poll() is None, log.read_text()
            assert list(tmp_path.rglob("metrics.csv")), log.read_text()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 130, log.read_text()
        finally:
            process.kill()
            process.wait()
    said = log.read_text()
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("loragen-train fit: interrupted; ")
    assert said.count("nterrupt") == 1
    assert not list(tmp_path.rglob("generator.safetensors"))


def test_a_disk_that_fills_up_is_one_sentence_and_the_same_command_goes_on_when_there_is_room(fit_config, tmp_path):
    content = {**fit_config, "output_dir": str(tmp_path), "name": "full"}
    content["training"] = {**content["training"], "validate_every_n_epochs": 1}
    config = write_yaml(tmp_path / "fit.yaml", content)
    # The system refuses a file beyond this size as it refuses one on a full disk.
    limited = (
        "import resource, sys\n"
        "from loragen_train.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["fit", "--config", config, "--resume", "auto"]
    done = subprocess.run([sys.executable, "-c", limited, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("loragen-train fit: error: ")
    assert "File too large" in last
    assert not list(tmp_path.rglob("*.tmp*"))

    done = subprocess.run(
        [sys.executable, "-m", "loragen_train.cli", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("generator.safetensors"))


def test_an_interrupted_collect_exits_130(make, collect_yaml, tmp_path, capsys, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_lora._Run, "advance", stop)
    assert make.cli("collect", "--config", collect_yaml) == 130
    assert not (tmp_path / "zoo" / "adapters").exists()

    monkeypatch.undo()
    assert make.cli("collect", "--config", str(tmp_path / "collect.yaml")) == 0
    assert capsys.readouterr().out == f"{tmp_path}/zoo/adapters/sums\n"


def test_a_wrong_path_is_named(fails, fit_config, tmp_path):
    line = fails(1, "prepare", "--source", str(tmp_path / "missing.jsonl"), "--output-dir", str(tmp_path))
    assert line.startswith("loragen-train prepare: error: ")
    assert "missing.jsonl is not a file" in line
    assert "no such file" in fails(2, "fit", "--config", str(tmp_path / "missing.yaml"))
    config = write_yaml(tmp_path / "fit.yaml", fit_config)
    assert "train_prompts.jsonl is not a file" in fails(1, "fit", "--config", config, "--data.prompts_dir", "nowhere")


def test_a_folder_without_lora_is_named(fails, fit_config, tmp_path):
    (tmp_path / "empty").mkdir()
    tasks = [{**task, "checkpoint_dir": str(tmp_path / "empty")} for task in fit_config["data"]["tasks"]]
    content = {**fit_config, "data": {**fit_config["data"], "tasks": tasks}}
    line = fails(1, "fit", "--config", write_yaml(tmp_path / "fit.yaml", content))
    assert f"{tmp_path}/empty holds no adapters" in line


def test_an_empty_prompt_file_is_named(fails, fit_config, tmp_path):
    for part in ("train", "val"):
        (tmp_path / f"{part}_prompts.jsonl").write_text("")
    config = write_yaml(tmp_path / "fit.yaml", fit_config)
    line = fails(1, "fit", "--config", config, "--data.prompts_dir", str(tmp_path))
    assert "train_prompts.jsonl is empty" in line


def test_an_adapter_that_does_not_fit_the_grid_is_named(fails, fit_config, tmp_path):
    config = write_yaml(tmp_path / "fit.yaml", fit_config)
    line = fails(1, "fit", "--config", config, "--model.max_seq_len", "10")
    assert "checkpoint-1 does not fit model.max_seq_len=10" in line
    assert "pass model.max_seq_len=" in line
    assert "max_tokens" not in line


@pytest.mark.parametrize(
    ("section", "key", "nearest"),
    [
        ("training", "learning_rat", "learning_rate"),
        ("data", "bacth_size", "batch_size"),
        ("model", "hiden_dim", "hidden_dim"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(fails, fit_config, tmp_path, section, key, nearest):
    content = {**fit_config, section: {**fit_config[section], key: 1}}
    line = fails(2, "fit", "--config", write_yaml(tmp_path / "fit.yaml", content))
    assert f"unknown key '{section}.{key}'; did you mean '{nearest}'?" in line


def test_an_unknown_key_of_a_task_and_an_unknown_option_are_named(fails, fit_config, tmp_path):
    tasks = [{**fit_config["data"]["tasks"][0], "nam": "x"}]
    content = {**fit_config, "data": {**fit_config["data"], "tasks": tasks}}
    line = fails(2, "fit", "--config", write_yaml(tmp_path / "fit.yaml", content))
    assert "unknown key 'data.tasks[0].nam'; did you mean 'name'?" in line
    line = fails(2, "fit", "--config", write_yaml(tmp_path / "fit.yaml", fit_config), "--training.max_epoch", "3")
    assert "training.max_epoch" in line


@pytest.mark.parametrize(
    ("option", "value"),
    [("--training.max_epochs", "many"), ("--data.batch_size", "1.5"), ("--training.scheduler_type", "triangle")],
)
def test_a_wrong_type_is_named(fails, fit_config, tmp_path, option, value):
    line = fails(2, "fit", "--config", write_yaml(tmp_path / "fit.yaml", fit_config), option, value)
    assert option.lstrip("-") in line
    assert value in line


@pytest.mark.parametrize(
    ("option", "value"), [("--training.seed", "-1"), ("--data.batch_size", "0"), ("--model.kernel_size", "-3")]
)
def test_a_value_out_of_range_is_named(fails, fit_config, tmp_path, option, value):
    line = fails(2, "fit", "--config", write_yaml(tmp_path / "fit.yaml", fit_config), f"{option}={value}")
    assert f"{option.lstrip('-')} is {value}" in line


def test_neither_or_both_ways_of_naming_checkpoints_is_refused(fails, fit_config, tmp_path):
    data = {"prompts_dir": fit_config["data"]["prompts_dir"]}
    for content, said in (
        (
            data,
            "There are no checkpoints to train on: give the zoo that collect or import has written as data.zoo",
        ),
        ({**fit_config["data"], "checkpoint_dir": "x"}, "data.checkpoint_dir (one task) or data.tasks (several), not"),
    ):
        assert said in fails(2, "fit", "--config", write_yaml(tmp_path / "fit.yaml", {"data": content}))


def test_a_schedule_of_former_versions_is_answered_with_what_there_is(fails, fit_config, tmp_path):
    content = {**fit_config, "training": {"scheduler_type": "plateau"}}
    line = fails(2, "fit", "--config", write_yaml(tmp_path / "fit.yaml", content))
    assert "training.scheduler_type" in line
    assert all(name in line for name in ("plateau", "cosine", "linear", "constant"))


def test_no_command_is_a_usage_error(make):
    assert make.cli() == 2
    assert make.cli("train") == 2


def test_a_dry_run_says_what_it_takes_and_writes_nothing(make, fit_config, tmp_path, capsys, monkeypatch):
    content = {**fit_config, "output_dir": str(tmp_path / "out")}
    content["data"] = {**fit_config["data"], "cache_dir": str(tmp_path / "cache")}
    config = write_yaml(tmp_path / "fit.yaml", content)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert make.cli("fit", "--config", config, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "4 checkpoints" in out
    assert "parameters in the generator" in out
    assert "MiB of memory" in out
    assert "4 steps, about 0 h 0 min" in out
    assert [path.name for path in tmp_path.iterdir()] == ["fit.yaml"]


def test_a_later_config_and_options_win(make, fit_config, tmp_path, capsys):
    first = write_yaml(tmp_path / "one.yaml", {**fit_config, "name": "first"})
    second = write_yaml(tmp_path / "two.yaml", {"name": "second", "training": {"weight_decay": 0.5}})
    words = ("--config", first, "--config", second, "--training.seed", "7", "--print-config")
    assert make.cli("fit", *words) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["name"], shown["training"]["weight_decay"], shown["training"]["seed"]) == ("second", 0.5, 7)
    assert shown["training"]["accelerator"] == "cpu"
    # What is printed is a configuration file.
    (tmp_path / "shown.yaml").write_text(yaml.safe_dump(shown))
    assert make.cli("fit", "--config", str(tmp_path / "shown.yaml"), "--print-config") == 0


def test_a_single_folder_is_one_task_on_the_command_line_too(make, tmp_path, capsys):
    data = make.zoo(tmp_path, tasks=("sums",))
    content = {"data": {"prompts_dir": data["prompts_dir"], "cache_dir": data["cache_dir"]}}
    content |= {"model": {"hidden_dim": 16, "output_dim": 16}, "training": {"max_epochs": 1, "accelerator": "cpu"}}
    config = write_yaml(tmp_path / "fit.yaml", content)
    words = ("--checkpoint-dir", data["tasks"][0]["checkpoint_dir"], "--output-dir", str(tmp_path / "out"))
    assert make.cli("fit", "--config", config, *words) == 0
    assert capsys.readouterr().out.startswith(str(tmp_path / "out"))


def test_the_keys_of_the_first_release_are_read(make, tmp_path, capsys):
    content = {
        "model": {
            "text_encoder_name": "all-MiniLM-L6-v2",
            "hidden_dim": 384,
            "max_seq_len": 512,
            "num_hyperconv_blocks": 3,
            "output_dim": 384,
            "freeze_text_encoder": True,
        },
        "training": {
            "max_epochs": 100,
            "learning_rate": 1e-4,
            "weight_decay": 0.01,
            "mse_weight": 1.0,
            "l1_weight": 0.1,
            "optimizer_type": "adamw",
            "scheduler_type": "cosine",
        },
        "data": {
            "checkpoint_dir": "checkpoints",
            "batch_size": 8,
            "samples_per_prompt": 4,
            "max_checkpoints": 50,
            "cache_tokenized": True,
        },
        "logging": {"swanlab": {"project": "p", "workspace": "w", "experiment_name": "e"}},
    }
    assert make.cli("fit", "--config", write_yaml(tmp_path / "fit.yaml", content), "--print-config") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    for section, values in content.items():
        for key, value in values.items():
            assert shown[section][key] == value or (
                section == "logging" and value.items() <= shown[section][key].items()
            )


def test_both_files_of_the_bundle_are_written_whole(make, fit_config, tmp_path, capsys):
    content = {**fit_config, "output_dir": str(tmp_path / "out"), "export": {"format": "safetensors"}}
    assert make.cli("fit", "--config", write_yaml(tmp_path / "fit.yaml", content)) == 0
    folder = Path(capsys.readouterr().out.strip()) / "results" / "final_model"
    names = {"generator.safetensors", "generator_model.pt", "task_means.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    one, two = (GeneratorBundle.load(folder / name) for name in ("generator.safetensors", "generator_model.pt"))
    assert one.fingerprint == two.fingerprint
    assert one.text_encoder_fingerprint == two.text_encoder_fingerprint is not None
    assert one.training_tasks == two.training_tasks
    assert one.training_tasks.names == ("sums", "spelling")


def test_a_changed_zoo_is_named_when_a_run_is_repeated(make, tmp_path, capsys, caplog):
    data = make.zoo(tmp_path)
    content = {"data": data, "model": {"hidden_dim": 16, "output_dim": 16}, "output_dir": str(tmp_path / "out")}
    content["training"] = {"max_epochs": 1, "accelerator": "cpu"}
    assert make.cli("fit", "--config", write_yaml(tmp_path / "fit.yaml", content)) == 0
    config = Path(capsys.readouterr().out.strip()) / "config.yaml"
    recorded = yaml.safe_load(config.read_text())["provenance"]
    assert recorded["versions"]["torch"] == torch.__version__
    caplog.clear()
    prompts = Path(data["prompts_dir"]) / "val_prompts.jsonl"
    prompts.write_text("".join(prompts.read_text().splitlines(keepends=True)[1:]))
    assert make.cli("fit", "--config", str(config)) == 0
    said = [record.message for record in caplog.records if "Not as when" in record.message]
    assert len(said) == 1
    assert "tasks.sums.prompts was" in said[0]
