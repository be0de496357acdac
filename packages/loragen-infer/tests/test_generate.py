"""The command generate as users meet it: forms, batches, resuming, and everything that can go wrong on the way."""

import errno
import io
import itertools
import json
import logging
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from lora_tokenizer import TokenLayout, read_adapter
from loragen_infer import LoraGenerator, LoragenInferError
from loragen_infer.cli.main import main
from loragen_infer.generation.card import read_request_fingerprint
from loragen_infer.generation.config import GenerateConfig
from loragen_infer.generation.run import run_generate
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ROWS = [{"id": "sums", "prompts": ["1 + 1", "2 + 3"]}, {"id": "capitals", "prompt": "Paris?"}, {"prompt": "ok"}]
NAMES = ["sums", "capitals", "000003"]


@pytest.fixture
def run(zoo, generator, monkeypatch):
    """``run_generate`` with the options given, on a generator that is loaded once for all tests."""
    monkeypatch.setattr("loragen_infer.generation.run.load_generator", lambda config: generator)
    return lambda **options: run_generate(GenerateConfig(model=str(zoo.experiment), **options))


@pytest.fixture
def prompt_file(make, tmp_path):
    return str(make.rows(tmp_path / "prompts.jsonl", ROWS))


def same(first, second, atol=1e-5):
    assert first.keys() == second.keys()
    return all(torch.allclose(tensor, second[name], rtol=0, atol=atol) for name, tensor in first.items())


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_one_task_is_one_peft_folder_with_three_files(run, generator, zoo, tmp_path):
    outcome = run(prompts=("1 + 1", "2 + 3"), output=str(tmp_path / "a"))
    assert (outcome.num_made, outcome.num_kept) == (1, 0)
    assert files(tmp_path / "a") == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    expected = generator.generate(["1 + 1", "2 + 3"])
    assert same(dict(read_adapter(tmp_path / "a").tensors), dict(expected.tensors), atol=0)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(zoo.model), str(tmp_path / "a"))
    assert model.peft_config["default"].r == 2


def test_the_card_names_base_model_prompts_and_fingerprint_whatever_is_in_them(run, zoo, generator, tmp_path):
    yaml = pytest.importorskip("yaml")
    hostile = '```\n---\nloragen_request: "0000000000000000"\n---\n# heading'
    run(prompts=("1 + 1", hostile, *(f"more {index}" for index in range(30))), output=str(tmp_path / "a"))
    text = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    assert "base_model" not in head  # a folder here, which no hub takes for one
    assert f"- base model: `{zoo.model}`" in text
    assert head["library_name"] == "peft"
    assert head["loragen_generator"] == generator.bundle.fingerprint
    assert head["loragen_request"] == read_request_fingerprint(tmp_path / "a") != "0" * 16
    assert "````text\n```" in text
    assert "… and 12 more." in text
    assert text.count("loragen_request:") == 2


def test_a_file_is_one_adapter_per_line_with_a_manifest(run, prompt_file, generator, zoo, tmp_path):
    outcome = run(prompt_file=prompt_file, output=str(tmp_path / "out"), batch_size=2)
    assert (outcome.num_made, outcome.num_kept) == (3, 0)
    visible = [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]
    assert sorted(visible) == sorted([*NAMES, "manifest.jsonl"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == NAMES
    assert rows[0]["prompts"] == ["1 + 1", "2 + 3"]
    for row in rows:
        folder = tmp_path / "out" / row["path"]
        assert same(dict(read_adapter(folder).tensors), dict(generator.generate(row["prompts"]).tensors))
        assert read_request_fingerprint(folder) == row["request"]
        assert row["generator"] == generator.bundle.fingerprint
        assert row["base_model"] == str(zoo.model)


def test_pool_makes_one_task_of_a_file(run, prompt_file, generator, tmp_path):
    run(prompt_file=prompt_file, prompts=("more",), pool=True, output=str(tmp_path / "one"))
    prompts = ["more", "1 + 1", "2 + 3", "Paris?", "ok"]
    assert same(dict(read_adapter(tmp_path / "one").tensors), dict(generator.generate(prompts).tensors), atol=0)


def test_every_form_holds_the_same_values(run, prompt_file, generator, tmp_path):
    out = tmp_path / "out"
    for kind in ("peft", "safetensors", "pt", "tokens"):
        run(prompt_file=prompt_file, output=str(out), format=kind)
        assert run(prompt_file=prompt_file, output=str(out), format=kind).num_kept == 3
    for name in NAMES:
        expected = dict(read_adapter(out / name).tensors)
        assert same(load_file(out / f"{name}.safetensors"), expected, atol=0)
        assert same(torch.load(out / f"{name}.pt", weights_only=True), expected, atol=0)
        with safe_open(out / f"{name}.tokens.safetensors", framework="pt") as reader:
            layout = TokenLayout.from_json(reader.metadata()["layout"])
            assert same(dict(layout.decode(reader.get_tensor("tokens")).tensors), expected, atol=0)
        with safe_open(out / f"{name}.safetensors", framework="pt") as reader:
            assert json.loads(reader.metadata()["adapter_config"]) == generator.bundle.layout.config.to_peft()


@pytest.mark.parametrize("mmap", [False, True])
def test_a_batch_in_one_file_of_plain_tensors(run, prompt_file, generator, tmp_path, mmap):
    output = tmp_path / "results" / "generated_params.pt"
    assert run(prompt_file=prompt_file, output=str(output), batch_size=2).num_made == 3
    assert files(tmp_path / "results") == ["generated_params.manifest.jsonl", "generated_params.pt"]
    content = torch.load(output, weights_only=True, mmap=mmap)
    assert content["ids"] == NAMES
    assert content["adapter_config"] == generator.bundle.layout.config.to_peft()
    for index, prompts in enumerate((["1 + 1", "2 + 3"], ["Paris?"], ["ok"])):
        tensors = {name: tensor[index] for name, tensor in content["tensors"].items()}
        assert same(tensors, dict(generator.generate(prompts).tensors))
    with zipfile.ZipFile(output) as archive:
        assert archive.testzip() is None
    assert run(prompt_file=prompt_file, output=str(output)).num_kept == 3
    manifest = tmp_path / "results" / "generated_params.manifest.jsonl"
    rows = manifest.read_text()
    manifest.unlink()  # as after a kill just before it was written
    assert run(prompt_file=prompt_file, output=str(output)).num_kept == 3
    assert manifest.read_text() == rows
    with pytest.raises(LoragenInferError, match="exists already and was not made from the same"):
        run(prompt_file=prompt_file, output=str(output), scale=2.0)


def test_a_file_of_one_adapter_says_what_it_is(run, generator, tmp_path):
    run(prompts=("1 + 1",), output=str(tmp_path / "a.safetensors"), format="safetensors")
    expected = generator.generate(["1 + 1"])
    read = read_adapter(tmp_path / "a.safetensors")
    assert read.config == expected.config
    assert same(dict(read.tensors), dict(expected.tensors), atol=0)


def test_tokens_of_a_batch_in_one_file(run, prompt_file, generator, tmp_path):
    run(prompt_file=prompt_file, output=str(tmp_path / "t.pt"), format="tokens")
    content = torch.load(tmp_path / "t.pt", weights_only=True)
    layout = TokenLayout.from_json(content["layout"])
    adapter = layout.decode(content["tensors"]["tokens"][1])
    assert same(dict(adapter.tensors), dict(generator.generate(["Paris?"]).tensors))


def test_one_file_that_memory_does_not_hold_is_refused_before_anything_is_made(run, prompt_file, tmp_path, monkeypatch):
    monkeypatch.setattr("loragen_infer.generation.writer._free_memory", lambda: 3 * 448 * 4 - 1)
    with pytest.raises(LoragenInferError, match=r"3 adapters in one file take 0\.0 GB .* give a folder for --output"):
        run(prompt_file=prompt_file, output=str(tmp_path / "all.pt"))
    assert files(tmp_path) == ["prompts.jsonl"]
    monkeypatch.setattr("loragen_infer.generation.writer._free_memory", lambda: 3 * 448 * 4)
    assert run(prompt_file=prompt_file, output=str(tmp_path / "all.pt")).num_made == 3


def test_prompts_can_be_left_out_of_card_and_manifest(run, prompt_file, tmp_path):
    run(prompt_file=prompt_file, output=str(tmp_path / "out"), omit_prompts=True)
    card = (tmp_path / "out" / "capitals" / "README.md").read_text(encoding="utf-8")
    manifest = (tmp_path / "out" / "manifest.jsonl").read_text(encoding="utf-8")
    assert "generated from 1 prompt\n" in card
    assert "Paris?" not in card + manifest
    assert run(prompt_file=prompt_file, output=str(tmp_path / "out"), omit_prompts=True).num_kept == 3


def test_a_base_model_that_is_named_is_the_one_in_every_form(zoo, tmp_path, capsys):
    for name in ("a", "a.safetensors", "a.tokens.safetensors"):
        words = ["generate", "--model", str(zoo.experiment), "--prompt", "1 + 1", "--base-model", "lab/base"]
        kind = "tokens" if "tokens" in name else name.rpartition(".")[2].replace("a", "peft", name == "a")
        assert main([*words, "--output", str(tmp_path / name), "--format", kind]) == 0
    assert "for lab/base)" in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["base_model_name_or_path"] == "lab/base"
    assert "base_model: lab/base" in (tmp_path / "a" / "README.md").read_text()
    assert main([*words[:-2], "--output", str(tmp_path / "a")]) == 1  # the one there names another base model
    for name, key in (("a.safetensors", "adapter_config"), ("a.tokens.safetensors", "layout")):
        with safe_open(tmp_path / name, framework="pt") as reader:
            assert "lab/base" in reader.metadata()[key]


def test_a_prompt_that_names_a_file_is_a_warning(run, prompt_file, tmp_path, caplog):
    run(prompts=(prompt_file, "no file", "\0" + "x" * 5000), output=str(tmp_path / "a"))
    [message] = [
        record.message for record in caplog.records if record.levelno == logging.WARNING and "file" in record.message
    ]
    assert f"The prompt {prompt_file!r} is also the name of a file; to read it, give --prompt-file" in message


@pytest.mark.parametrize("kind", ["peft", "safetensors", "pt", "tokens"])
def test_an_adapter_beyond_its_dtype_is_written_in_no_form(zoo, make, encoder, tmp_path, monkeypatch, kind):
    folder = make.adapter(AutoModelForCausalLM.from_pretrained(zoo.model), tmp_path / "half")
    tensors = {name: tensor.half() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    generator = LoraGenerator(make.bundle([folder]), encoder)
    monkeypatch.setattr("loragen_infer.generation.run.load_generator", lambda config: generator)
    output = tmp_path / {"peft": "a", "pt": "a.pt"}.get(kind, "a.safetensors")
    config = GenerateConfig(model="m", prompts=("1 + 1",), output=str(output), format=kind, scale=1e6)
    with pytest.raises(
        LoragenInferError, match=r"would hold NaN or Inf: .*lora_B\.weight goes beyond float16 at scale 1e"
    ):
        run_generate(config)
    assert not output.exists()


def test_what_is_done_is_skipped_and_what_differs_is_never_replaced(run, prompt_file, make, tmp_path, generator):
    out = tmp_path / "out"
    run(prompt_file=prompt_file, output=str(out))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    more = make.rows(tmp_path / "more.jsonl", [*ROWS, {"id": "new", "prompt": "new"}])
    outcome = run(prompt_file=str(more), output=str(out))
    assert (outcome.num_made, outcome.num_kept) == (1, 3)
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())
    only = make.rows(tmp_path / "only.jsonl", [{"id": "other", "prompt": "other"}])
    run(prompt_file=str(only), output=str(out))
    ids = [json.loads(line)["id"] for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert sorted(ids) == sorted([*NAMES, "new", "other"])
    changed = make.rows(tmp_path / "changed.jsonl", [{"id": "fresh", "prompt": "x"}, {"id": "sums", "prompt": "other"}])
    with pytest.raises(LoragenInferError, match="sums exists already and was not made from the same prompts"):
        run(prompt_file=str(changed), output=str(out))
    assert not (out / "fresh").exists()  # found before any work was done


def test_a_folder_of_something_else_is_left_alone(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with pytest.raises(LoragenInferError, match=f"{name} exists already; choose another --output or remove it"):
            run(prompts=("a",), output=str(tmp_path / name))
    assert files(tmp_path) == ["file", "mine/thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert run(prompts=("a",), output=str(tmp_path / "empty")).num_made == 1


def test_an_output_that_cannot_be_written_is_said_before_anything_is_loaded(zoo, tmp_path, monkeypatch):
    def never(config):
        raise AssertionError("loaded")

    monkeypatch.setattr("loragen_infer.generation.run.load_generator", never)
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file" / "a", Path("/proc/nowhere/a")):
        with pytest.raises(LoragenInferError, match=r"cannot be written: .*; choose another place"):
            run_generate(GenerateConfig(model=str(zoo.experiment), prompts=("a",), output=str(place)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "there is no prompt"),
        ({"prompts": ("a",), "prompt_file": "b.txt"}, "together need --pool"),
        (
            {"prompts": ("a",), "format": "gguf"},
            "'gguf', where one of peft, safetensors, pt, tokens belongs",
        ),
        ({"prompts": ("a",), "format": "tokens"}, "needs an --output that ends in .safetensors, not out"),
        ({"prompts": ("a",), "format": "pt"}, "needs an --output that ends in .pt, not out"),
        ({"prompts": ("a",), "format": "peft", "output": "out.pt"}, "needs a folder"),
        ({"prompt_file": "b.txt", "format": "peft", "output": "out.pt"}, "one .pt file, which --format peft cannot be"),
        ({"prompts": ("a",), "batch_size": 0}, "--batch-size is 0"),
        ({"prompts": ("a",), "scale": float("nan")}, "--scale is nan"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(LoragenInferError, match=message):
        GenerateConfig(**{"model": "m", "output": "out", **options})


def test_an_empty_prompt_is_refused_before_anything_is_loaded(zoo, tmp_path, capsys):
    words = ["generate", "--model", str(zoo.experiment), "--output", str(tmp_path / "a"), "--prompt", "ok"]
    assert main([*words, "--prompt", " "]) == 1
    assert "Prompt 2 of 2 has no text" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_many_long_prompts_get_one_warning_with_what_is_lost(run, make, tmp_path, caplog):
    rows = [{"prompt": "word " * 300 + str(index)} for index in range(5)]
    with caplog.at_level(logging.WARNING, logger="loragen_infer"):
        run(prompt_file=str(make.rows(tmp_path / "p.jsonl", rows)), output=str(tmp_path / "out"), batch_size=2)
    [message] = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert message.startswith("5 of 5 prompts are longer than the 256 tokens")
    assert f"{5 * (303 - 256)} tokens are ignored" in message


def test_a_full_disk_is_one_sentence_and_keeps_what_is_finished(run, make, tmp_path, monkeypatch):
    rows = [{"id": name, "prompt": name} for name in ("small", "long", "never")]
    file, out = make.rows(tmp_path / "p.jsonl", rows), tmp_path / "out"
    sync = os.fsync

    def full(descriptor):
        if (out / "small").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LoragenInferError, match="cannot be written: No space left on device; choose another"):
        run(prompt_file=str(file), output=str(out), batch_size=1)
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["small"]
    assert len(read_adapter(out / "small").tensors) == 8


def test_an_interrupted_batch_lists_what_is_finished(run, make, generator, tmp_path, monkeypatch):
    file = make.rows(tmp_path / "p.jsonl", [{"id": f"n{index}", "prompt": f"say {index}"} for index in range(5)])
    out, generate_many = tmp_path / "out", generator.generate_many

    def interrupted(*args, **options):
        yield from itertools.islice(generate_many(*args, **options), 3)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generator, "generate_many", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(prompt_file=str(file), output=str(out), batch_size=1)
    assert sorted(path.name for path in out.iterdir()) == [".lock", "manifest.jsonl", "n0", "n1", "n2"]
    assert len((out / "manifest.jsonl").read_text().splitlines()) == 3
    outcome = run(prompt_file=str(file), output=str(out))
    assert (outcome.num_made, outcome.num_kept) == (2, 3)


def test_a_second_process_is_refused_and_a_killed_one_keeps_what_is_whole_and_goes_on(zoo, make, tmp_path, run):
    file = make.rows(tmp_path / "p.jsonl", [{"id": f"n{index}", "prompt": f"say {index}"} for index in range(2000)])
    out = tmp_path / "out"
    words = ["generate", "--model", zoo.experiment, "--prompt-file", file, "--output", out, "--batch-size", 1]
    command = [sys.executable, "-m", "loragen_infer.cli", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 240
        while not (out / "n2").is_dir():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(LoragenInferError, match=r"Another process is writing to .*out; wait for it to end"):
            run(prompt_file=str(file), output=str(out))
        process.kill()
    made = [path for path in out.iterdir() if path.is_dir() and not path.name.startswith(".")]
    assert 2 < len(made) < 2000
    for folder in made:
        assert files(folder) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
        read_adapter(folder)
    (tmp_path / "few.jsonl").write_text("".join(file.read_text().splitlines(keepends=True)[: len(made) + 2]))
    outcome = run(prompt_file=str(tmp_path / "few.jsonl"), output=str(out), batch_size=1)
    assert (outcome.num_made, outcome.num_kept) == (2, len(made))
    assert not [path for path in out.iterdir() if ".tmp-" in path.name]


def test_where_another_process_was_faster_with_the_same_adapter_both_end_well(run, generator, tmp_path, monkeypatch):
    options = {"prompts": ("a",), "output": str(tmp_path / "one")}
    generate = generator.generate

    def overtaken(prompts, **settings):
        monkeypatch.setattr(generator, "generate", generate)
        assert run(**options).num_made == 1
        return generate(prompts, **settings)

    monkeypatch.setattr(generator, "generate", overtaken)
    assert run(**options).num_made == 1
    assert files(tmp_path) == [
        f"one/{name}" for name in ("README.md", "adapter_config.json", "adapter_model.safetensors")
    ]


def test_prompts_from_standard_input_and_options_of_the_command(zoo, tmp_path, generator, monkeypatch, capsys):
    out, cache = str(tmp_path / "out"), str(tmp_path / "cache")
    words = ["generate", "--model", str(zoo.experiment), "--prompt-file", "-", "--output-dir", out, "--scale", "2"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"1 + 1\n2 + 2\n")))
    assert main([*words, "--cache-dir", cache, "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 2 adapters made (448 parameters each, for {zoo.model})")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    made, plain = read_adapter(tmp_path / "out" / "000002"), generator.generate(["2 + 2"])
    module = made.modules[0]
    torch.testing.assert_close(made.delta_weight(module), 2 * plain.delta_weight(module), rtol=0.1, atol=0.1)


def test_ids_that_leave_the_folder_write_nothing_at_all(zoo, make, tmp_path, capsys):
    file = make.rows(tmp_path / "p.jsonl", [{"id": "good", "prompt": "a"}, {"id": "../../x", "prompt": "b"}])
    words = ["generate", "--model", str(zoo.experiment), "--prompt-file", str(file), "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert "line 2: the id '../../x' cannot be a file name" in capsys.readouterr().err
    assert files(tmp_path) == ["p.jsonl"]


def test_a_link_in_the_output_folder_is_not_followed_out_of_it(run, make, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "missing")
    file = make.rows(tmp_path / "p.jsonl", [{"id": "a", "prompt": "a"}])
    with pytest.raises(LoragenInferError, match="a exists already"):
        run(prompt_file=str(file), output=str(tmp_path / "out"))
    assert not (tmp_path / "missing").exists()
