"""A zoo of adapters from folders and files: what is written, what is refused, and that all of it is said at once."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_tokenizer import LoraAdapter, read_adapter, write_adapter
from loragen_infer import LoragenInferError
from loragen_infer.zoo import ZooManifest
from loragen_train import LoragenTrainError
from loragen_train.configs.importing import ImportConfig
from loragen_train.zoo.importing import import_zoo
from loragen_train.zoo.table import ImportRow, read_rows
from safetensors.torch import save_file

NAMES = ("sums", "spelling", "capitals")


@pytest.fixture
def parts(tmp_path, make, questions):
    """Adapters of one initialisation and samples of three tasks, called alike."""
    for number, name in enumerate(NAMES):
        write_adapter(grown(make, number), tmp_path / "adapters" / name)
        make.samples(tmp_path / "prompts" / f"{name}.jsonl", questions[name])
    return tmp_path


def grown(make, number: int, **settings) -> LoraAdapter:
    """An adapter whose A is near the initialisation that all of these share."""
    initial, own = make.adapter(seed=100, **settings), make.adapter(seed=number, **settings)
    tensors = {
        name: initial.tensors[name] + 0.3 * value if ".lora_A." in name else value
        for name, value in own.tensors.items()
    }
    return LoraAdapter(config=own.config, tensors=tensors)


def rows_of() -> list[dict]:
    return [{"name": name, "adapter": f"adapters/{name}", "prompts": f"prompts/{name}.jsonl"} for name in NAMES]


def write_table(file: Path, rows: list[dict]) -> str:
    if file.suffix == ".csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        file.write_text(yaml.safe_dump(rows))
    return str(file)


def imported(parts: Path, rows: list[dict], *, skip_unusable: bool = False, **options) -> ZooManifest:
    """The zoo of a table, as it is read again."""
    config = ImportConfig(
        **{"table": write_table(parts / "table.jsonl", rows), "output_dir": str(parts / "zoo"), "base_model": "lab/lm"}
        | options
    )
    import_zoo(config, skip_unusable=skip_unusable)
    return ZooManifest.read(parts / "zoo")


def refusal(parts: Path, rows: list[dict], **options) -> str:
    """What is said of a table that is refused; nothing may be written then."""
    with pytest.raises(LoragenTrainError) as caught:
        imported(parts, rows, **options)
    assert {path.name for path in (parts / "zoo").iterdir()} == {".lock"}
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".yaml", ""])
def test_tables_and_folders_make_the_same_zoo(suffix, parts, make, capsys):
    where = ["--adapters", str(parts / "adapters"), "--prompts", str(parts / "prompts")]
    if suffix:
        where = ["--table", write_table(parts / f"table{suffix}", rows_of())]
    words = ["--output-dir", str(parts / "zoo"), "--base-model", "lab/lm", "--num-test", "8", "--json"]
    assert make.cli("import", *where, *words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["num_tasks"], printed["num_adapters"], printed["failures"]) == (3, 3, {})
    zoo = ZooManifest.read(parts / "zoo")
    assert [task.name for task in zoo.tasks] == (list(NAMES) if suffix else sorted(NAMES))
    assert (zoo.base_model, zoo.canonical) == ("lab/lm", "none")
    assert zoo.lora == {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    task = zoo.task("sums")
    assert zoo.path(task.adapters[0]) == parts / "adapters" / "sums"
    train, test = (make.read(zoo.samples(file)) for file in (task.prompts, task.test))
    assert (len(train), len(test)) == (task.prompts.num_samples, task.test.num_samples) == (40, 8)
    source = make.read(parts / "prompts" / "sums.jsonl")
    assert sorted([*train, *test], key=str) == sorted(source, key=str)


def test_what_lies_in_the_zoo_is_named_relative_to_it(parts):
    (parts / "zoo").mkdir()
    (parts / "adapters").rename(parts / "zoo" / "adapters")
    rows = [{**row, "adapter": f"zoo/{row['adapter']}"} for row in rows_of()]
    assert imported(parts, rows).task("sums").adapters == ["adapters/sums"]


def test_all_checkpoints_of_a_folder_are_taken_and_columns_chosen(parts, make):
    for number in (10, 9):
        write_adapter(grown(make, number), parts / "runs" / f"checkpoint-{number}")
    make.rows(parts / "odd.jsonl", [{"input": f"{n}?", "output": [f"{n}", "another"]} for n in range(6)])
    make.rows(parts / "test.jsonl", [{"input": "3?", "output": "3"}, {"input": "7?", "output": "7"}])
    row = {"name": "odd", "adapter": "runs", "prompts": "odd.jsonl", "prompt_column": "input", "test": "test.jsonl"}
    seen = {"name": "seen", "prompts": "prompts/sums.jsonl", "held_out": True}
    zoo = imported(parts, [row, seen], num_test=4)
    task = zoo.task("odd")
    assert [Path(path).name for path in task.adapters] == ["checkpoint-9", "checkpoint-10"]
    # Of accepted answers the first, and nothing that is in the test file.
    assert make.read(zoo.samples(task.prompts)) == [{"prompt": f"{n}?", "response": f"{n}"} for n in (0, 1, 2, 4, 5)]
    assert task.test.num_samples == 2
    assert zoo.task("seen").held_out
    assert (zoo.task("seen").adapters, zoo.task("seen").test.num_samples) == ([], 4)


def test_prompts_without_responses_have_no_test_samples(parts, make):
    make.rows(parts / "prompts" / "sums.jsonl", [{"prompt": f"{n}?"} for n in range(6)])
    zoo = imported(parts, rows_of(), num_test=3)
    assert (zoo.task("sums").test, zoo.task("sums").prompts.num_samples) == (None, 6)
    assert zoo.task("spelling").test.num_samples == 3


def test_a_pickle_file_is_written_as_safetensors_and_its_code_is_not_run(parts, make):
    folder = parts / "adapters" / "sums"
    tensors = dict(grown(make, 0).tensors)
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    zoo = imported(parts, rows_of())
    assert zoo.task("sums").adapters == ["adapters/sums/adapter-1"]
    assert {path.name for path in zoo.path("adapters/sums/adapter-1").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_an_alpha_may_be_given_to_files_that_do_not_say_it(parts, make):
    for name in NAMES:
        (parts / "adapters" / name / "adapter_model.safetensors").rename(parts / "adapters" / f"{name}.safetensors")
    rows = [{**row, "adapter": f"{row['adapter']}.safetensors"} for row in rows_of()]
    assert "sums.safetensors: lora_alpha is missing from the adapter config: pass lora_alpha=" in refusal(parts, rows)
    zoo = imported(parts, rows, lora_alpha=32)
    assert zoo.lora["lora_alpha"] == 32
    (path,) = zoo.task("sums").adapters
    assert read_adapter(zoo.path(path)).config.lora_alpha == 32


def test_everything_that_cannot_be_used_is_said_at_once(parts, make):
    broken = grown(make, 0)
    broken.tensors[next(iter(broken.tensors))][0, 0] = torch.nan
    save_file(broken.tensors, parts / "adapters" / "sums" / "adapter_model.safetensors")
    (parts / "prompts" / "spelling.jsonl").unlink()
    rows = [
        *rows_of(),
        {"name": "../../x", "adapter": "adapters/sums", "prompts": "prompts/sums.jsonl"},
        {"name": "gone", "adapter": "../nowhere/at/all", "prompts": "prompts/sums.jsonl"},
        {"name": "twice", "adapter": "adapters/sums", "prompts": "prompts/sums.jsonl"},
        {"name": "twice", "adapter": "adapters/sums", "prompts": "prompts/sums.jsonl"},
        {"name": "odd", "adaptr": "adapters/sums", "prompts": "prompts/sums.jsonl"},
        {"name": "none", "prompts": "prompts/sums.jsonl"},
        {"name": "lacking", "adapter": "adapters/sums"},
    ]
    lines = refusal(parts, rows).splitlines()
    assert lines[0].startswith("8 problems, and nothing is written; mend all, or")
    assert "table.jsonl, row 4: The task name '../../x' becomes a file name" in lines[1]
    assert lines[2].endswith("row 8: there is no column 'adaptr'; did you mean 'adapter'?.")
    assert lines[3].endswith("row 10: prompts: Field required.")
    assert "'twice' is used 2 times" in lines[4]
    rest = "\n".join(lines[5:])
    assert "gone: '../nowhere/at/all' does not exist" in rest
    assert "none: It names no adapter" in rest
    assert "sums:" in rest
    assert "NaN" in rest
    assert "spelling.jsonl is not a file" in rest


def test_what_cannot_be_used_may_be_noted_instead(parts, make, caplog):
    (parts / "adapters" / "sums" / "adapter_model.safetensors").write_bytes(b"no adapter")
    (parts / "prompts" / "extra.jsonl").write_text('{"prompt": "alone"}\n')
    words = ["--adapters", str(parts / "adapters"), "--prompts", str(parts / "prompts")]
    words += ["--output-dir", str(parts / "zoo"), "--base-model", "lab/lm"]
    assert make.cli("import", *words) == 1
    assert make.cli("import", *words, "--skip-unusable") == 0
    zoo = ZooManifest.read(parts / "zoo")
    assert [task.name for task in zoo.training_tasks] == ["capitals", "spelling"]
    assert "adapter_model.safetensors" in zoo.task("sums").failure
    assert "extra.jsonl has no partner in" in caplog.text


def test_a_zoo_that_is_there_is_replaced_on_demand_only(parts, make):
    # What an import that was killed has left.
    make.rows(parts / "zoo" / "unfinished_import" / "train" / "old.jsonl", [{"prompt": "a"}])
    imported(parts, rows_of())
    assert {path.name for path in (parts / "zoo").iterdir()} == {".lock", "train", "zoo.json"}
    assert not (parts / "zoo" / "train" / "old.jsonl").exists()
    with pytest.raises(LoragenTrainError, match=r"has a zoo\.json already; .* --overwrite\.$"):
        imported(parts, rows_of()[:2])
    table = write_table(parts / "table.jsonl", rows_of()[:2])
    words = ["--table", table, "--output-dir", str(parts / "zoo"), "--base-model", "lab/lm"]
    assert make.cli("import", *words, "--overwrite") == 0
    assert len(ZooManifest.read(parts / "zoo").tasks) == 2


def test_adapters_of_several_kinds_are_grouped_and_one_group_kept(parts, make):
    for number in (1, 2):
        write_adapter(make.adapter(seed=1, r=4), parts / "adapters" / NAMES[number], overwrite=True)
    said = refusal(parts, rows_of())
    assert "take one with --keep majority or --keep 1: group 1: 2 tasks (spelling, capitals), r 4, alpha 4," in said
    assert "group 2: 1 task (sums), r 2, alpha 4, q_proj+v_proj, 6 modules with" in said
    assert "there is no group 3" in refusal(parts, rows_of(), keep=3)
    zoo = imported(parts, rows_of(), keep="majority")
    assert [task.name for task in zoo.training_tasks] == ["spelling", "capitals"]
    assert zoo.task("sums").failure.startswith("Its adapter (r 2, alpha 4,")
    (parts / "zoo" / "zoo.json").unlink()
    assert [task.name for task in imported(parts, rows_of(), keep=2).training_tasks] == ["sums"]


def test_a_scaling_of_its_own_is_a_kind_of_its_own_but_half_precision_is_not(parts, make):
    write_adapter(grown(make, 0).to("float16"), parts / "adapters" / "sums", overwrite=True)
    assert len(imported(parts, rows_of()).training_tasks) == 3
    (parts / "zoo" / "zoo.json").unlink()
    write_adapter(grown(make, 0, use_rslora=True), parts / "adapters" / "sums", overwrite=True)
    with pytest.raises(LoragenTrainError, match=r"group 2: 1 task .*r 2, alpha 4, rsLoRA"):
        imported(parts, rows_of())


def test_the_base_model_is_what_the_adapters_name(parts, make):
    for name in ("sums", "spelling"):
        write_adapter(grown(make, 0, base_model_name_or_path="lab/lm"), parts / "adapters" / name, overwrite=True)
    assert imported(parts, rows_of(), base_model=None).base_model == "lab/lm"
    (parts / "zoo" / "zoo.json").unlink()
    write_adapter(grown(make, 0, base_model_name_or_path="lab/other"), parts / "adapters" / "sums", overwrite=True)
    with pytest.raises(
        LoragenTrainError, match=r"name 2 base models: .*lab/other \(1 task, such as sums\).*--base-model"
    ):
        imported(parts, rows_of(), base_model=None)
    for name in NAMES:
        write_adapter(grown(make, 0), parts / "adapters" / name, overwrite=True)
    with pytest.raises(LoragenTrainError, match="do not name their base model; say with --base-model"):
        imported(parts, rows_of(), base_model=None)


def test_unrelated_initialisations_are_seen(parts, make, caplog):
    for number, name in enumerate(NAMES):
        write_adapter(make.adapter(seed=number), parts / "adapters" / name, overwrite=True)
    with caplog.at_level("INFO"):
        assert imported(parts, rows_of()).canonical == "svd"
    assert "mean cosine of" in caplog.text
    assert "below 0.5: they grew from unrelated initialisations, so zoo.json says canonical: svd" in caplog.text


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.lists(st.integers(), max_size=2)
)
PLACES = st.sampled_from(
    [
        *(f"adapters/{name}" for name in NAMES),
        *(f"prompts/{name}.jsonl" for name in NAMES),
        *("lab/adapter", "..", ".", "~nobody/x", "hf:adapters", "\0", "x" * 5000, "reasoning-gym:gcd", "hf:", "a:b"),
    ]
)
COLUMNS = (
    "name",
    "adapter",
    "prompts",
    "revision",
    "prompt_column",
    "split",
    "test",
    "test_split",
    "held_out",
    "other",
)
CHANGES = st.dictionaries(st.sampled_from(COLUMNS), st.one_of(PLACES, VALUES, st.sampled_from(NAMES)), max_size=3)
ROWS = st.builds(lambda row, changes: {**row, **changes}, st.sampled_from(rows_of()), CHANGES)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.one_of(ROWS, ROWS, VALUES), min_size=1, max_size=3), as_yaml=st.booleans(), skip=st.booleans())
def test_any_rows_make_a_zoo_or_sentences(rows, as_yaml, skip, parts):
    table = parts / ("any.yaml" if as_yaml else "any.json")
    table.write_text(yaml.safe_dump(rows) if as_yaml else json.dumps(rows))
    config = ImportConfig(table=str(table), output_dir=str(parts / "zoo"), base_model="lab/lm", num_samples=4)
    try:
        import_zoo(config, skip_unusable=skip, overwrite=True)
    except (LoragenTrainError, LoragenInferError) as error:
        said = str(error)
    else:
        said = str(ZooManifest.read(parts / "zoo"))
    assert said.strip()


def test_the_table_of_the_documentation_is_read(tmp_path):
    page = (Path(__file__).parents[3] / "docs/how-to/import.md").read_text(encoding="utf-8")
    (tmp_path / "t.csv").write_text(page.partition("<!-- lots-of-loras -->\n```csv\n")[2].partition("```")[0])
    rows, problems = read_rows(ImportConfig(table=str(tmp_path / "t.csv")))
    assert problems == []
    assert [(row.name, row.held_out) for row in rows] == [("task190", False), ("task391", False), ("task280", True)]
    assert rows[2].repository == ("Lots-of-LoRAs/Mistral-7B-Instruct-v0.2-4b-r16-task280", None)
    source = rows[0].source(rows[0].prompts)
    assert (source.location, source.prompt_column) == ("hf:Lots-of-LoRAs/task190_snli_classification", "input")


def test_a_data_set_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "quiz").mkdir(parents=True)
    row = ImportRow(name="t", adapter="a", prompts="hf:~/quiz", folder=tmp_path)
    assert row.source(row.prompts).location == f"hf:{tmp_path / 'home' / 'quiz'}"


# A list of ten lists of ten lists and so on, whose text would fill any memory.
BOMB = b"- &a0 [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"- &a%d [%s]\n" % (n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 30)
)


def test_a_table_runs_no_code(parts):
    (parts / "evil.yaml").write_text("task: evil\n")
    said = refusal(parts, [{**rows_of()[0], "prompts": "lm-eval:evil.yaml"}])
    assert "sums: lm-eval:evil.yaml could run code, which no table may" in said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b'name,adapter,prompts\n"a,b', r"t\.csv cannot be read: unexpected end of data"),
        ("t.csv", b"name,adapter\na,b,c,d\n", r"t\.csv, row 1: it has more cells than the table has columns"),
        ("t.csv", b"\xff\xfe\x00", r"t\.csv cannot be read: 'utf-8' codec"),
        ("t.csv", b"name,adapter,prompts\n", r"t\.csv has no rows"),
        ("t.yaml", b"[", r"t\.yaml cannot be read: while parsing"),
        ("t.yaml", b"- !!timestamp x\n", r"t\.yaml cannot be read: "),
        ("t.yaml", b"- !!bool x\n", r"t\.yaml cannot be read: "),
        ("t.yaml", b"- !!python/object/apply:os.system ['true']\n", r"t\.yaml cannot be read: could not determine"),
        ("t.yaml", BOMB, r"row 9: it is \[\[\[\.\.\.\], "),
        ("t.txt", b"", r"t\.txt has the ending '\.txt'; give \.csv"),
        ("t.yml", b"- name: 3\n  prompts: x\n", r"row 1: name: Input should be a valid string \(it is 3\)"),
    ],
)
def test_a_table_that_is_none_is_one_sentence(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LoragenTrainError, match=said):
        import_zoo(ImportConfig(table=str(tmp_path / name), output_dir=str(tmp_path / "zoo")))


def test_options_that_contradict_each_other_are_refused(make, capsys):
    assert make.cli("import", "--table", "t.csv", "--adapters", "a") == 2
    assert "either table or adapters and prompts" in capsys.readouterr().err
    assert make.cli("import", "--adapters", "a") == 2
    assert "Give a table, or both adapters and prompts" in capsys.readouterr().err
