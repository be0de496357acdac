"""The documentation: its code is compiled, run or parsed, and what it says of formats and names is so."""

import dataclasses
import importlib
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from hyperconv import GeneratorConfig, HyperConvGenerator
from lora_tokenizer import AdapterConfig, LoraAdapter, TokenLayout, TokenStats
from loragen_infer import GeneratorBundle, TrainingTasks
from loragen_infer.bundle.bundle_file import read_bundle_file
from loragen_infer.bundle.sealed_file import read_sealed
from loragen_infer.cli.command_line import run_command_line
from loragen_infer.zoo import SampleFile, TaskQuality, ZooManifest, ZooTask
from quick_start import ROOT

PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md"))]
FENCED = re.compile(r'^```(\w*)(?: title="([^"\n]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
PROGRAMS = ("loragen-infer", "loragen-train")
# What the files that a title names configure, and which file of config/ such a fragment is laid over.
CONFIGURED = {
    "collect.yaml": ("loragen-train", "collect", ["--config", "config/collect.yaml"]),
    "fit.yaml": ("loragen-train", "fit", ["--config", "config/generator_config.yaml"]),
    "evaluate.yaml": ("loragen-infer", "evaluate", ["--model", "model"]),
}


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: str
    language: str
    title: str
    text: str


def content(path: Path) -> str:
    """The text of a page, with the files in it that it includes."""

    def included(match: re.Match[str]) -> str:
        name, _, section = match[1].partition(":")
        text = (ROOT / name).read_text(encoding="utf-8")
        if section:
            text = text.split(f"[start:{section}] -->\n")[1].split(f"<!-- --8<-- [end:{section}]")[0]
        return text.strip("\n")

    return re.sub(r'^--8<-- "(.+)"$', included, path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def all_blocks() -> Iterator[Block]:
    for path in PAGES:
        for found in FENCED.finditer(content(path)):
            yield Block(path.relative_to(ROOT).as_posix(), found[1], found[2] or "", found[3])


BLOCKS = list(all_blocks())


def blocks(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def commands() -> list[list[str]]:
    """Every command line of the two programs in a shell block, once."""
    found = {}
    for block in blocks("bash", "sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if set(word) <= set(";&|"):
                    start = next((place for place, one in enumerate(words) if one in PROGRAMS), None)
                    if start is not None and "pip" not in words:
                        found[tuple(words[start:])] = None
                    words = []
                else:
                    words.append(word)
    return [list(words) for words in found]


@pytest.fixture
def parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Parses a command line as the program does, with its config made and checked, and stops before it runs."""
    (tmp_path / "config").symlink_to(ROOT / "config")
    monkeypatch.chdir(tmp_path)

    def parse_only(prog, description, commands, argv, **options):
        idle = [dataclasses.replace(command, run=lambda *_: None) for command in commands]
        return run_command_line(prog, description, idle, argv, **options)

    def parsed(words: list[str]) -> int:
        program = importlib.import_module(f"{words[0].replace('-', '_')}.cli.main")
        monkeypatch.setattr(program, "run_command_line", parse_only)
        for before, word in itertools.pairwise(words):
            if before == "--config" and not Path(word).exists():
                Path(word).parent.mkdir(parents=True, exist_ok=True)
                Path(word).write_text("{}\n", encoding="utf-8")
        return program.main(words[1:])

    return parsed


def test_there_is_something_to_test():
    assert len(commands()) > 30
    assert len(blocks("python")) > 15
    assert {block.title for block in blocks("yaml")} == set(CONFIGURED)
    assert {block.language for block in BLOCKS} <= {"", "bash", "csv", "json", "python", "sh", "yaml"}


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.page)
def test_python_compiles(block):
    compile(block.text, block.page, "exec")


def test_every_page_with_python_is_run_by_a_test():
    tests = [
        path.read_text(encoding="utf-8")
        for path in [*ROOT.glob("packages/*/tests/**/test_*.py"), *ROOT.glob("tests/*.py")]
    ]
    for page in {block.page for block in blocks("python") if block.page.startswith("docs/")}:
        # A page whose Python is all included from a README is run where the README is.
        own = "```python" in (ROOT / page).read_text(encoding="utf-8")
        assert not own or any(page in text for text in tests), page


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_accepted(words, parse, capsys):
    words = ["config/generator_config.yaml" if word == "$config" else word for word in words]
    try:
        code = parse(words)
    except SystemExit as stop:
        code = stop.code
    assert code in (0, None), capsys.readouterr().err


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: f"{block.page}-{block.title}")
def test_yaml_is_accepted(block, parse, capsys):
    assert yaml.safe_load(block.text)
    program, command, options = CONFIGURED[block.title]
    Path("block.yaml").write_text(block.text, encoding="utf-8")
    try:
        code = parse([program, command, *options, "--config", "block.yaml"])
    except SystemExit as stop:
        code = stop.code
    assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: f"{block.page}-{block.title}")
def test_json_is_read(block, tmp_path):
    if block.title == "zoo.json":
        (tmp_path / block.title).write_text(block.text, encoding="utf-8")
        assert [task.name for task in ZooManifest.read(tmp_path).tasks] == ["sums", "opposites"]
    elif block.title == "layout.json":
        assert json.loads(TokenLayout.from_json(block.text).to_json()) == json.loads(block.text)
    else:
        try:
            json.loads(block.text)
        except ValueError:
            assert all(json.loads(line) for line in block.text.splitlines())


def test_extras_files_sessions_and_pages_that_are_named_exist():
    text = "\n".join(content(path) for path in PAGES)
    for package, extras in re.findall(r"(lora-tokenizer|hyperconv|loragen-\w+)\[([\w,-]+)\]", text):
        project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert set(extras.split(",")) <= set(project["optional-dependencies"]), extras
    for script in re.findall(r"python (packages/[\w/.-]+\.py)", text):
        assert (ROOT / script).is_file(), script
    sessions = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.MULTILINE))
    named = [word for line in re.findall(r"nox -s ([\w ]+)", text) for word in line.split()]
    assert named
    assert set(named) <= sessions
    for path in PAGES:
        if path.name == "README.md":  # the pages of docs/ are checked when the site is built
            links = re.findall(r"\]\((?!https?:)([^)#\s]+)|^\[[\w-]+\]: ([^#\s]+)", content(path), re.MULTILINE)
            for link in map("".join, links):
                assert (path.parent / link).exists(), f"{path}: {link}"


def test_the_api_pages_name_what_is_public():
    for name in ("lora_tokenizer", "hyperconv", "loragen_infer"):
        page = (ROOT / "docs/api" / f"{name.replace('_', '-')}.md").read_text(encoding="utf-8")
        assert sorted(re.findall(rf"^::: {name}\.(\w+)$", page, re.MULTILINE)) == sorted(
            importlib.import_module(name).__all__
        )
    page = (ROOT / "docs/api/loragen-train.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: ([\w.]+)\.(\w+)$", page, re.MULTILINE)
    assert len(named) > 10
    for module, name in named:
        assert name in importlib.import_module(module).__all__


def table_fields(page: str) -> set[str]:
    """What stands in code font in the first column of a page's tables."""
    lines = re.findall(r"^\| (.+?) \|", (ROOT / "docs/formats" / page).read_text(encoding="utf-8"), re.MULTILINE)
    return {name for line in lines for name in re.findall(r"`([^`]+)`", line)}


def fields_of(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_the_fields_of_a_zoo_are_those_of_the_code():
    page = table_fields("zoo-json.md")
    top = fields_of(ZooManifest) - {"folder"} | {"format", "version"}
    assert page == top | {f"tasks[].{name}" for name in fields_of(ZooTask)}
    text = (ROOT / "docs/formats/zoo-json.md").read_text(encoding="utf-8")
    for name in fields_of(SampleFile) | fields_of(TaskQuality):
        assert f"`{name}`" in text or f'"{name}"' in text


@pytest.fixture(scope="module")
def adapter() -> LoraAdapter:
    config = AdapterConfig(r=2, lora_alpha=4, target_modules=("q_proj",), base_model_name_or_path="tiny")
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    shapes = {"A": (2, 8), "B": (8, 2)}
    tensors = {name.format(n, factor): torch.randn(shapes[factor]) for n in range(2) for factor in shapes}
    return LoraAdapter(config=config, tensors=tensors)


def test_the_fields_of_a_layout_are_those_of_the_code(adapter):
    written = json.loads(TokenLayout.from_adapter(adapter, token_dim=4, transpose_b=True).to_json())
    assert table_fields("token-layout.md") == set(written) | fields_of(AdapterConfig)


def test_the_lines_on_layouts_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    layout, code = (block.text for block in BLOCKS if block.page == "docs/formats/token-layout.md")
    Path("layout.json").write_text(layout, encoding="utf-8")
    exec(compile(code, "docs/formats/token-layout.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[0].startswith("(1, 6, 4) 22 8.3%")


@pytest.fixture(scope="module")
def bundle(adapter) -> GeneratorBundle:
    """A bundle that has everything a bundle may have."""
    layout = TokenLayout.from_adapter(adapter, token_dim=8)
    (num_layers, row_tokens, width) = layout.grid
    config = GeneratorConfig(
        condition_dim=384 + 8, hidden_dim=8, grid=(num_layers, row_tokens), output_dim=width, num_hyperconv_blocks=0
    )
    return GeneratorBundle(
        generator=HyperConvGenerator(config).eval(),
        layout=layout,
        stats=TokenStats.from_tokens([layout.encode(adapter)] * 2),
        text_encoder_name="all-MiniLM-L6-v2",
        text_encoder_revision="main",
        text_encoder_fingerprint="0" * 16,
        text_encoder_state={"weight": torch.zeros(1)},
        condition="both:1",
        condition_model_name="tiny",
        condition_model_fingerprint="0" * 16,
        training_tasks=TrainingTasks(names=("sums",), prompt_hashes={"sums": frozenset({"0" * 16})}),
        provenance={"experiment": "zoo"},
    )


def test_the_fields_of_a_bundle_are_those_of_the_code(bundle, tmp_path):
    rows = re.findall(
        r"^\| (.+?) \| (.+?) \| ", (ROOT / "docs/formats/bundle.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    named = {name for row in rows for cell in row for name in re.findall(r"`([^`]+)`", cell)}
    # `text_encoder_name`, `_revision`, `_fingerprint`
    named = {f"text_encoder{name}" if name.startswith("_") else name for name in named}
    tensors, metadata = read_sealed(bundle.save(tmp_path / "generator.safetensors"))
    for name in [*metadata, *(f"{tensor.partition('.')[0]}.*" for tensor in tensors)]:
        assert name in named, name
    assert set(read_bundle_file(bundle.save(tmp_path / "generator_model.pt"))) <= named
    assert "sha256" in named


def test_the_lines_on_bundles_run(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = Path("experiments/zoo_20260101_120000/results/final_model")
    folder.mkdir(parents=True)
    bundle.save(folder / "generator.safetensors")
    [code] = [block.text for block in blocks("python") if block.page == "docs/formats/bundle.md"]
    exec(compile(code, "docs/formats/bundle.md", "exec"), {})
    assert capsys.readouterr().out.startswith("loragen-bundle all-MiniLM-L6-v2")
