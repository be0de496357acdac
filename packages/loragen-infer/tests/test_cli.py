"""The command line: exit codes, one-sentence errors, configs and options."""

import dataclasses
import doctest
import errno
import importlib
import logging
import os
import pkgutil
import subprocess
import sys
import warnings
from importlib.metadata import version
from typing import Literal

import loragen_infer
import pytest
from loragen_infer import AdapterStore, LoraGenerator, LoragenInferError
from loragen_infer.cli.command_line import Command, run_command_line
from loragen_infer.cli.main import main
from loragen_infer.generation.card import read_request_fingerprint
from peft import PeftModel
from transformers import AutoModelForCausalLM


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A section."""

    size: int = 1
    """How large."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A config."""

    output_dir: str = "out"
    """Where to."""
    section: Section = dataclasses.field(default_factory=Section)
    """Nested."""
    parts: list[Section] = dataclasses.field(default_factory=list)
    """A list."""
    names: list[str] | None = None
    """Several."""
    limit: int | Literal["auto"] = "auto"
    """A choice."""
    way: Literal["to the left", "to the right"] = "to the left"
    """A choice of words only."""

    def __post_init__(self) -> None:
        if self.output_dir == "forbidden":
            raise LoragenInferError("output_dir is forbidden; choose another.")


@pytest.fixture
def call():
    """Run ``prog go`` with options; gives exit code and the config that arrived."""

    def run(*options, action=None):
        seen = []
        command = Command(
            name="go", help="go", description="Go.", example="prog go", run=action or seen.append, config_class=Config
        )
        try:
            code = run_command_line(
                "prog",
                "A program.",
                [command],
                ["go", *map(str, options)],
                errors=(LoragenInferError,),
                loggers=("prog",),
                version="1.2",
            )
        except SystemExit as stop:
            code = stop.code
        return code, seen[0] if seen else None

    return run


def test_options_win_over_files_and_later_files_over_earlier_ones(call, tmp_path):
    (tmp_path / "a.yaml").write_text("output_dir: a\nsection: {size: 2}\n")
    (tmp_path / "b.yaml").write_text("output_dir: b\n")
    files = ["--config", tmp_path / "a.yaml", f"--config={tmp_path / 'b.yaml'}"]
    for words in (
        [*files, "--section.size", 3],
        ["--section.size", 3, *files],
        [*files[:2], "--section.size=3", files[2]],
        ["--section.size", 3, "--section", '{"size": 4}', *files],
    ):
        assert call(*words) == (0, Config(output_dir="b", section=Section(size=3)))


@pytest.mark.parametrize("option", ["--output-dir", "--output_dir"])
def test_dashes_and_underscores_are_the_same(call, option):
    assert call(option, "x")[1].output_dir == "x"
    assert call(f"{option}=x")[1].output_dir == "x"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--names", "a", "wrong prompts"], ["a", "wrong prompts"]),
        (["--names", "a"], ["a"]),
        (["--names=a"], ["a"]),
        (["--names", "[a, b]"], ["a", "b"]),
        (["--names=[]"], []),
        (["--names", "null"], None),
        (["--names", "1", "null"], ["1", "null"]),
        (["--names+", "a", "--names+=b"], ["a", "b"]),
    ],
)
def test_the_texts_of_a_list_follow_its_option(call, words, names):
    for order in ([*words, "--output-dir", "x"], ["--output-dir", "x", *words]):
        assert call(*order) == (0, Config(output_dir="x", names=names))


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("outptu_dir: x", ["file.yaml", "outptu_dir", "did you mean 'output_dir'"]),
        ("section: {siez: 1}", ["section.siez", "did you mean 'size'"]),
        ("parts: [{size: 1}, {siez: 1}]", ["parts[1].siez", "did you mean 'size'"]),
        ("section: {size: large}", ["section.size", "int", "large"]),
        ("a: [", ["file.yaml", "not valid YAML"]),
        ("- a", ["file.yaml holds a list"]),
        ("", ["file.yaml is empty, where 'key: value' lines belong"]),
        ("limit: many", ["limit", "expected int or 'auto', got many"]),
        ("way: up", ["way", "expected 'to the left' or 'to the right', got up"]),
        ("output_dir: forbidden", ["output_dir is forbidden"]),
    ],
)
def test_a_bad_file_is_one_sentence_and_exit_code_2(call, capsys, tmp_path, yaml, words):
    (tmp_path / "file.yaml").write_text(yaml)
    assert call("--config", tmp_path / "file.yaml") == (2, None)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("prog go: error: ")
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--section.siez", "3"], ["section.siez", "did you mean 'section.size'"]),
        (["--section.siz", "3"], ["section.siz", "did you mean 'section.size'"]),
        (["--section.size", "x"], ["section.size", "int"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
    ],
)
def test_a_bad_option_is_one_sentence_and_exit_code_2(call, capsys, options, words):
    assert call(*options) == (2, None)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words), line


def test_the_printed_config_is_a_valid_file(call, capsys, tmp_path):
    assert call("--section.size", 7, "--print_config")[0] == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert call("--config", tmp_path / "printed.yaml")[1] == Config(section=Section(size=7))


def raise_known(_config):
    raise LoragenInferError("The cup is empty; fill it.")


def raise_interrupt(_config):
    raise KeyboardInterrupt


def test_a_known_error_is_exit_code_1_and_verbose_shows_where(call, capsys):
    assert call(action=raise_known)[0] == 1
    assert capsys.readouterr().err == "prog go: error: The cup is empty; fill it.\n"
    assert call("--verbose", action=raise_known)[0] == 1


def test_verbose_shows_the_traceback(call, caplog):
    call("--verbose", action=raise_known)
    assert any(record.exc_info for record in caplog.records)


def test_an_interrupt_is_exit_code_130(call, capsys):
    assert call(action=raise_interrupt)[0] == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_running_out_of_memory_is_one_sentence(call, capsys, error):
    def run(_config):
        raise error

    assert call(action=run)[0] == 1
    assert capsys.readouterr().err.startswith("prog go: error: The memory does not hold this;")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_sentence_whoever_writes(call, capsys, number):
    def run(_config):
        raise OSError(number, os.strerror(number), "/scratch/some.ckpt")

    assert call(action=run)[0] == 1
    said = f"/scratch/some.ckpt cannot be written: {os.strerror(number)}; free space"
    assert capsys.readouterr().err.startswith(f"prog go: error: {said}")


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--model", "ZOO", "--prompt", "a", "--output", "LONG"],
        ["generate", "--model", "LONG", "--prompt", "a", "--output", "made"],
        ["generate", "--model", "ZOO", "--ray", "--prompt-file", "LONG", "--output", "made"],
        ["info", "LONG"],
        ["verify", "LONG"],
        ["demo", "--config", "LONG"],
    ],
)
def test_a_name_that_is_too_long_is_one_sentence(zoo, tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    places = {"LONG": "x" * 300, "ZOO": str(zoo.experiment)}
    try:
        code = main([places.get(word, word) for word in words])
    except SystemExit as stop:
        code = stop.code
    assert code == (2 if words[0] == "demo" else 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "xxx is longer than the system takes; give a shorter one." in line or "there is no such file" in line
    assert not list(tmp_path.iterdir())


def test_what_libraries_say_stays_away_and_what_the_program_says_does_not(call, capsys):
    def run(_config):
        logging.getLogger("prog.part").info("said by the program")
        logging.getLogger("urllib3.retries").warning("said by a library")
        warnings.warn("said by another", stacklevel=1)

    logging.getLogger().handlers[:] = []
    assert call(action=run)[0] == 0
    assert capsys.readouterr().err == "said by the program\n"


def test_the_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"loragen-infer {version('loragen-infer')}"


def test_an_unknown_error_is_a_defect_and_stays_raw(call):
    with pytest.raises(ZeroDivisionError):
        call(action=lambda config: 1 / 0)


def test_generate_writes_an_adapter_that_peft_loads(zoo, tmp_path, capsys):
    folder = tmp_path / "made"
    (tmp_path / "prompts.txt").write_text("say cd\n\nsay ef\n")
    options = ["--model", str(zoo.experiment), "--prompt", "say ab", "--prompt-file", str(tmp_path / "prompts.txt")]
    assert main(["generate", *options, "--output", str(folder)]) == 2
    assert "together need --pool" in capsys.readouterr().err
    options = ["generate", *options, "--pool", "--output", str(folder)]
    assert main(options) == 0
    assert "1 adapter made (448 parameters each" in capsys.readouterr().out
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(zoo.model), str(folder))
    assert main(options) == 0
    assert "0 adapters made, 1 were there already" in capsys.readouterr().out
    assert main([*options, "--prompt", "another"]) == 1
    assert "exists already and was not made from the same prompts" in capsys.readouterr().err


def test_generate_without_a_place_finds_its_adapter_again(zoo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [
        "generate",
        "--model",
        str(zoo.experiment),
        "--description",
        "Write ab.",
        "--prompt",
        "say ab",
    ]
    assert main(options) == 0
    (folder,) = (tmp_path / "adapters").iterdir()
    assert capsys.readouterr().out.startswith(f"adapters/{folder.name}: 1 adapter made")
    assert folder.name == read_request_fingerprint(folder)
    store = AdapterStore(tmp_path / "adapters", LoraGenerator.from_pretrained(zoo.experiment))
    assert store.id_of(["say ab", "Write ab."]) == folder.name
    assert [stored.path for stored in store] == [folder]
    assert "```text\nsay ab\n```\n\n```text\nWrite ab.\n```" in (folder / "README.md").read_text()
    assert main(options) == 0
    assert f"adapters/{folder.name}: 0 adapters made, 1 were there already" in capsys.readouterr().out
    assert main([*options, "--scale", "0.5"]) == 0
    assert main([*options, "--format", "tokens"]) == 0
    assert sorted(path.name[16:] for path in (tmp_path / "adapters").iterdir()) == ["", "", ".tokens.safetensors"]
    (tmp_path / "prompts.txt").write_text("say cd\n")
    assert main([*options[:3], "--prompt-file", "prompts.txt"]) == 2
    assert "give --output for them, or add --pool" in capsys.readouterr().err


def test_generate_without_a_prompt(zoo, tmp_path, capsys):
    options = ["--model", str(zoo.experiment), "--output-dir", str(tmp_path / "made")]
    assert main(["generate", *options]) == 2
    assert "--prompt" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n")
    assert main(["generate", *options, "--prompt-file", str(tmp_path / "empty.txt")]) == 1
    assert "empty.txt is empty" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        *([name, "--help"] for name in ("generate", "verify", "evaluate", "info", "compare", "merge", "serve", "demo")),
    ],
)
def test_help_loads_nothing_heavy(words):
    code = (
        "import sys\nfrom loragen_infer.cli.main import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'gradio'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert words == ["--help"] or "example:" in done.stdout


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys\nimport loragen_infer\n"
        "heavy = {'torch', 'numpy', 'transformers', 'huggingface_hub', 'gradio', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


MODULES = [module.name for module in pkgutil.walk_packages(loragen_infer.__path__, "loragen_infer.")]
# Of these one runs a command, and one defines a class of vLLM's, which is never installed here.
NOT_IMPORTED = ("loragen_infer.cli.__main__", "loragen_infer.vllm.resolver")


@pytest.mark.parametrize("name", [name for name in MODULES if name not in NOT_IMPORTED])
def test_the_examples_in_the_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
