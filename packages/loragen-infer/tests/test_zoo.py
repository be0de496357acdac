"""zoo.json: what is written comes back, and whatever else the file holds is one sentence."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loragen_infer import LoragenInferError
from loragen_infer.zoo import MANIFEST_NAME, JointFold, SampleFile, TaskQuality, ZooManifest, ZooTask, path_in_zoo

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,11}", fullmatch=True)
FILE_NAMES = st.text("abcXYZ019_- .äé", min_size=1, max_size=12).filter(lambda text: text.strip(" .") != "")
PATHS = st.lists(FILE_NAMES, min_size=1, max_size=3).map("/".join) | FILE_NAMES.map("/elsewhere/{}".format)
FLOATS = st.floats(allow_nan=False)
FILES = st.builds(
    SampleFile,
    path=PATHS,
    num_samples=st.integers(0, 10**9),
    sha256=st.binary(max_size=4).map(lambda value: hashlib.sha256(value).hexdigest()),
)
TASKS = st.builds(
    ZooTask,
    name=NAMES,
    sources=st.lists(TEXTS, max_size=2),
    held_out=st.booleans(),
    prompts=st.none() | FILES,
    test=st.none() | FILES,
    adapters=st.lists(PATHS, max_size=3),
    quality=st.none() | st.builds(TaskQuality, nll=FLOATS, base_nll=FLOATS),
    failure=st.none() | TEXTS,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MANIFESTS = st.builds(
    ZooManifest,
    base_model=TEXTS,
    base_model_path=st.none() | PATHS,
    lora=st.dictionaries(TEXTS, st.integers() | TEXTS | st.lists(TEXTS, max_size=2), max_size=3),
    canonical=st.sampled_from(["none", "svd"]),
    tasks=st.lists(TASKS, max_size=4, unique_by=lambda task: task.name),
    joint=st.none() | PATHS,
    joint_folds=st.just([])
    | st.lists(st.builds(JointFold, adapter=PATHS, tasks=st.lists(TEXTS, max_size=3)), min_size=2, max_size=3),
)
GOOD = {
    "format": "loragen-zoo",
    "version": 1,
    "base_model": "base",
    "tasks": [
        {
            "name": "sums",
            "prompts": {"path": "train/sums.jsonl", "num_samples": 1, "sha256": "0" * 64},
            "adapters": ["adapters/sums/checkpoint-4"],
            "quality": {"nll": 0.5, "base_nll": 2.0},
        }
    ],
}
FIELDS = ["format", "version", "base_model", "base_model_path", "lora", "canonical", "tasks", "joint", "joint_folds"]
TASK_FIELDS = ["name", "sources", "held_out", "prompts", "test", "adapters", "quality", "failure"]


def write(folder: Path, content: object) -> Path:
    (folder / MANIFEST_NAME).write_text(json.dumps(content), encoding="utf-8")
    return folder


def refused(folder: Path, content: object) -> str:
    with pytest.raises(LoragenInferError) as caught:
        ZooManifest.read(write(folder, content))
    message = str(caught.value)
    assert MANIFEST_NAME in message
    assert "\n" not in message
    assert len(message) < 600
    return message


def is_sentence_or_fine(folder: Path) -> bool:
    try:
        ZooManifest.read(folder)
    except LoragenInferError as error:
        return "\n" not in str(error) and len(str(error)) < 600
    return True


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("name", ["", "../../x", "a/b", ".hidden", "two words", "x\n"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    task = {**GOOD["tasks"][0], "name": name}
    assert "calls a task" in refused(tmp_path, {**GOOD, "tasks": [task]})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(MANIFESTS)
def test_what_is_written_comes_back(tmp_path, manifest):
    manifest = ZooManifest(**{**vars(manifest), "folder": tmp_path.absolute()})
    assert manifest.write() == tmp_path / MANIFEST_NAME
    for place in (tmp_path, tmp_path / MANIFEST_NAME, str(tmp_path)):
        assert ZooManifest.read(place) == manifest


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_value_anywhere_is_read_or_refused_in_a_sentence(tmp_path, data):
    content = json.loads(json.dumps(GOOD))
    inside = data.draw(st.booleans())
    part, names = (content["tasks"][0], TASK_FIELDS) if inside else (content, FIELDS)
    part[data.draw(st.sampled_from(names))] = data.draw(JSON)
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content), encoding="utf-8")
    assert is_sentence_or_fine(tmp_path)


@given(st.binary(max_size=64))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_are_refused_in_a_sentence(tmp_path, content):
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(LoragenInferError, match=r"zoo\.json"):
        ZooManifest.read(tmp_path)


@pytest.mark.parametrize("depth", [500, 900, 5000, 200_000])
@pytest.mark.parametrize("place", ["all", "lora", "tasks", "unknown"])
def test_depth_is_no_trouble(tmp_path, depth, place):
    text = nested(depth)
    if place != "all":
        text = json.dumps({**GOOD, place: "HERE"}).replace('"HERE"', text if place != "lora" else f'{{"r": {text}}}')
    (tmp_path / MANIFEST_NAME).write_text(text, encoding="utf-8")
    assert is_sentence_or_fine(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "peft"}, "is no manifest of a zoo: its format is not 'loragen-zoo'"),
        ({"version": 2}, "has version 2, but this loragen reads version 1; update it"),
        ({"version": None}, "has version None, but"),
        ({"base_model": None}, "base_model: Input should be a valid string (it is None)"),
        ({"canonical": "qr"}, "canonical: Input should be 'none' or 'svd' (it is 'qr')"),
        ({"tasks": {"sums": {}}}, "tasks: Input should be a valid list"),
        ({"tasks": [{"held_out": True}]}, "tasks.0.name: Field required"),
        ({"tasks": [{"name": "a", "prompts": "a.jsonl"}]}, "tasks.0.prompts"),
        ({"tasks": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}, "has two tasks called 'a'"),
        ({"tasks": [{"name": "a", "adapters": ["../../x"]}]}, "names '../../x', which leaves its folder"),
        ({"tasks": [{"name": "a", "adapters": [""]}]}, "names '', which"),
        ({"joint": "joint/../../x"}, "names 'joint/../../x', which leaves its folder"),
        ({"base_model_path": ".."}, "names '..', which leaves its folder"),
        ({"joint": "a\0b"}, "holds a zero byte"),
        ({"joint_folds": [{"adapter": "../x", "tasks": []}] * 2}, "names '../x', which leaves its folder"),
        ({"joint_folds": [{"adapter": "x", "tasks": []}]}, "has one fold of the joint adapter"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    assert message in refused(tmp_path, {**GOOD, **change})


def test_unknown_fields_are_ignored(tmp_path):
    task = {**GOOD["tasks"][0], "colour": "red"}
    manifest = ZooManifest.read(write(tmp_path, {**GOOD, "tasks": [task], "made_by": {"deep": [1]}}))
    assert manifest.tasks[0].quality.gain == 1.5


def test_a_folder_without_a_manifest_is_named(tmp_path):
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(
            LoragenInferError, match=rf"{place.name} has no zoo\.json; give a folder that loragen-train"
        ):
            ZooManifest.read(place)
    (tmp_path / MANIFEST_NAME).mkdir()
    with pytest.raises(LoragenInferError, match=r"zoo\.json cannot be read as JSON"):
        ZooManifest.read(tmp_path)


def test_a_name_too_long_for_the_file_system_is_one_sentence(tmp_path):
    with pytest.raises(LoragenInferError, match="xxx is longer than the system takes; give a shorter one"):
        ZooManifest.read(tmp_path / ("x" * 300))


def test_paths_are_relative_inside_the_folder_and_absolute_elsewhere(tmp_path):
    zoo = tmp_path / "zoo"
    assert path_in_zoo(zoo / "train" / "a.jsonl", zoo) == "train/a.jsonl"
    assert path_in_zoo(tmp_path / "a.jsonl", zoo) == (tmp_path / "a.jsonl").as_posix()
    manifest = ZooManifest(base_model="base", folder=zoo)
    assert manifest.path("train/a.jsonl") == zoo / "train" / "a.jsonl"
    assert manifest.path("/elsewhere") == Path("/elsewhere")


def test_a_file_of_samples_is_the_one_that_was_described(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"prompt": "x"}\n\n{"prompt": "y"}')
    described = SampleFile.of(file, tmp_path)
    assert (described.path, described.num_samples) == ("a.jsonl", 2)
    manifest = ZooManifest(base_model="base", folder=tmp_path)
    assert manifest.samples(described) == file
    file.write_bytes(b'{"prompt": "z"}')
    with pytest.raises(LoragenInferError, match=r"a\.jsonl has been changed since .*zoo\.json was written"):
        manifest.samples(described)
    file.unlink()
    with pytest.raises(LoragenInferError, match=r"a\.jsonl, which .*zoo\.json names, cannot be read: No such file"):
        manifest.samples(described)


def test_tasks_are_found_by_name_and_by_what_they_are_for(tmp_path):
    tasks = [
        ZooTask(name="sums", adapters=["x"]),
        ZooTask(name="capitals", held_out=True, adapters=["y"]),
        ZooTask(name="failed", failure="NaN"),
    ]
    manifest = ZooManifest(base_model="base", tasks=tasks, folder=tmp_path)
    assert manifest.training_tasks == tasks[:1]
    assert manifest.held_out_tasks == tasks[1:2]
    assert manifest.task("failed") is tasks[2]
    with pytest.raises(LoragenInferError, match=r"zoo\.json has no task 'capital'; did you mean 'capitals'\?"):
        manifest.task("capital")
