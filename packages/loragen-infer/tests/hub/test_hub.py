"""Generators and adapters on the hub, against a stand-in of its HTTP API: pushed whole, pulled, refused."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from loragen_infer import LoraGenerator, LoragenInferError
from loragen_infer.cli.main import main
from loragen_infer.generation.card import read_request_fingerprint
from loragen_infer.hub.pushing import check_push
from loragen_infer.models.locate import locate_model
from safetensors.torch import load


@pytest.fixture
def encoder_at_hand(monkeypatch, encoder):
    """The text encoder is loaded already, whatever a bundle says of it."""
    monkeypatch.setattr("loragen_infer.bundle.encoder_match.load_encoder", lambda *args, **options: encoder)


def test_a_pushed_generator_is_pulled_as_it_was(hub, generator, encoder_at_hand):
    url = generator.push_to_hub("ada/sums", private=True, commit_message="First")
    commit = hub.commit_of("ada/sums", "main")[0]
    assert url == f"{hub.url}/ada/sums/commit/{commit}"
    assert hub.repositories["ada/sums"].is_private
    assert hub.repositories["ada/sums"].message == "First"
    assert sorted(hub.files("ada/sums")) == [".gitattributes", "README.md", "generator.safetensors"]
    assert "LoraGenerator.from_pretrained('ada/sums')" in hub.files("ada/sums")["README.md"].decode()
    pulled = LoraGenerator.from_pretrained("ada/sums")
    assert pulled.fingerprint == generator.fingerprint
    first, second = (one.generate(["say ab"]).tensors for one in (generator, pulled))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_to_be_private_is_not_pushed_where_all_can_read_it(hub, generator):
    generator.push_to_hub("ada/sums")
    before = hub.commit_of("ada/sums", "main")[0]
    with pytest.raises(LoragenInferError, match=r"^ada/sums is there already and everyone can read it; "):
        generator.push_to_hub("ada/sums", private=True)
    assert hub.commit_of("ada/sums", "main")[0] == before


def test_what_was_pulled_is_found_in_the_cache_without_the_hub(hub, generator, encoder_at_hand, monkeypatch):
    generator.push_to_hub("ada/sums")
    LoraGenerator.from_pretrained("ada/sums")
    constants = huggingface_hub.constants
    commit = hub.commit_of("ada/sums", "main")[0]
    folder = Path(constants.HF_HUB_CACHE) / "models--ada--sums" / "snapshots" / commit
    assert [path.name for path in folder.iterdir()] == ["generator.safetensors"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert LoraGenerator.from_pretrained("ada/sums").fingerprint == generator.fingerprint
    for call in (
        lambda: LoraGenerator.from_pretrained("ada/others"),
        lambda: generator.push_to_hub("ada/sums"),
        lambda: check_push("ada/sums"),
    ):
        with pytest.raises(LoragenInferError, match=r"HF_HUB_OFFLINE forbids the hub"):
            call()
    assert len(hub.requests) == asked


def test_what_is_here_has_no_revision(zoo):
    with pytest.raises(
        LoragenInferError, match=r"is here and not on the hub, so it has no revision 'main'; leave it out"
    ):
        LoraGenerator.from_pretrained(zoo.file, revision="main")


def test_a_revision_is_a_branch_or_a_commit(hub, zoo, encoder, encoder_at_hand):
    first = LoraGenerator(zoo.bundle, encoder)
    second = LoraGenerator(zoo.bundle.with_base_model("lab/another"), encoder)
    first.push_to_hub("ada/sums")
    second.push_to_hub("ada/sums", revision="next")
    second.push_to_hub("ada/sums", revision="next")  # which is there already
    commit = hub.commit_of("ada/sums", "main")[0]
    for revision, expected in (("main", first), (commit, first), ("next", second)):
        assert LoraGenerator.from_pretrained("ada/sums", revision=revision).base_model == expected.base_model
    with pytest.raises(LoragenInferError, match="ada/sums has no revision 'v9' on the hub; give a branch"):
        LoraGenerator.from_pretrained("ada/sums", revision="v9")


def test_large_files_go_to_the_large_file_storage(hub, generator):
    hub.stores_large_files = True
    generator.push_to_hub("ada/sums")
    assert len(hub.large) == 1
    assert load(hub.files("ada/sums")["generator.safetensors"]).keys() == load(next(iter(hub.large.values()))).keys()


@pytest.mark.parametrize(
    ("refusal", "way_out"),
    [((507, "The storage is full"), "try again later"), ((400, "The card names no model"), "mend what it names")],
)
def test_what_the_hub_refuses_is_one_sentence_and_leaves_nothing_half(hub, generator, monkeypatch, refusal, way_out):
    hub.refusal = refusal
    with pytest.raises(LoragenInferError, match=rf"refuses the push to ada/sums: .*{refusal[1]}.*; {way_out}\."):
        generator.push_to_hub("ada/sums")
    assert list(hub.files("ada/sums")) == [".gitattributes"]
    with pytest.raises(LoragenInferError, match=r"refuses the push to ada/new: .*; give a token that may write there"):
        generator.push_to_hub("ada/new", token="hf_reader")
    assert "ada/new" not in hub.repositories
    with pytest.raises(LoragenInferError, match=r"'a/b/c' cannot be a repository's name; give one such as user/name"):
        generator.push_to_hub("a/b/c")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")  # where nobody listens
    with pytest.raises(LoragenInferError, match=r"The hub cannot be reached for the push to ada/new: .*; try again\."):
        generator.push_to_hub("ada/new")


def test_what_the_hub_does_not_have_or_does_not_show(hub, generator, monkeypatch):
    generator.push_to_hub("ada/sums", private=True)
    hub.repositories["ada/empty"] = type(hub.repositories["ada/sums"])(
        is_private=False, branches={"main": [("1" * 40, {"pytorch_model.bin": b"pickle"})]}
    )
    with pytest.raises(LoragenInferError, match=r"The hub's repository ada/empty holds no generator.safetensors"):
        LoraGenerator.from_pretrained("ada/empty")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(LoragenInferError, match=r"The model ada/sums does not exist; .* that the hub lets you read"):
        LoraGenerator.from_pretrained("ada/sums")
    assert not any("pytorch_model.bin" in request for request in hub.requests)


def test_without_the_extra_it_says_what_to_install(hub, generator, monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(LoragenInferError, match=r"needs httpx2; install it with: pip install 'loragen-infer\[hub\]'"):
        generator.push_to_hub("ada/sums")


def test_generate_pushes_the_adapter(hub, zoo, generator, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("loragen_infer.generation.run.load_generator", lambda config: generator)
    options = ["generate", "--model", "m", "--prompt", "say ab", "--output", str(tmp_path / "a")]
    assert main([*options, "--push-to-hub", "ada/ab", "--private"]) == 0
    said = capsys.readouterr().out
    assert f"Pushed: {hub.url}/ada/ab/commit/{hub.commit_of('ada/ab', 'main')[0]}" in said
    for name in ("notes.pkl", "notes.md", "verified.json"):
        (tmp_path / "a" / name).write_bytes(b"no part of an adapter")
    assert main([*options, "--push-to-hub", "ada/ab"]) == 0  # which is there already, as is the adapter
    assert "1 were there already" in capsys.readouterr().out
    files = hub.files("ada/ab")
    assert sorted(files) == [".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"]
    for name in files.keys() - {".gitattributes"}:
        assert files[name] == (tmp_path / "a" / name).read_bytes()
    assert hub.repositories["ada/ab"].is_private


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "a", "--private"], "--private is for the repository of --push-to-hub, which is missing"),
        (["--prompt-file", "f.txt", "--output", "o", "--push-to-hub", "ada/ab"], "takes one adapter as a PEFT folder"),
        (["--prompt", "a", "--format", "pt", "--push-to-hub", "ada/ab"], "takes one adapter as a PEFT folder"),
    ],
)
def test_options_of_pushing_that_do_not_go_together(options, words, capsys):
    assert main(["generate", "--model", "m", *options]) == 2
    assert words in capsys.readouterr().err


def test_generate_refuses_to_push_offline_before_the_work(capsys):
    assert main(["generate", "--model", "missing", "--prompt", "a", "--push-to-hub", "ada/ab"]) == 1
    assert "HF_HUB_OFFLINE forbids the hub, so nothing is pushed to ada/ab" in capsys.readouterr().err


def test_the_whole_way_in_processes_of_their_own(hub, zoo, generator, tmp_path):
    """Push a generator, pull it by name on the command line, and push the adapter that it makes."""
    generator.push_to_hub("ada/sums")
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    words = ["generate", "--model", "ada/sums", "--description", "say ab", "--push-to-hub", "ada/ab"]
    command = [sys.executable, "-m", "loragen_infer.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "adapters").iterdir()
    assert folder.name == read_request_fingerprint(folder)
    assert hub.files("ada/ab")["adapter_model.safetensors"] == (folder / "adapter_model.safetensors").read_bytes()
    assert json.loads(hub.files("ada/ab")["adapter_config.json"])["r"] == 2


def test_models_that_others_do_not_have_are_named(hub, zoo, encoder, encoder_at_hand, caplog):
    place = locate_model("all-MiniLM-L6-v2", kind="text encoder")
    assert Path(place).is_dir(), "the encoder is one of a package"
    bundle = dataclasses.replace(zoo.bundle, text_encoder_name=place)
    LoraGenerator(bundle, encoder).push_to_hub("ada/sums")
    assert f"names the model {zoo.model} of this machine, which others do not have" in caplog.text
    assert place not in caplog.text
    pulled = LoraGenerator.from_pretrained("ada/sums").bundle
    assert pulled.text_encoder_name == "sentence-transformers/all-MiniLM-L6-v2"
    assert pulled.fingerprint == bundle.fingerprint


def test_the_lines_of_the_documentation_run(hub, zoo):
    text = (Path(__file__).parents[4] / "docs/how-to/hub.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code.replace('"experiments/zoo_20260101_120000"', repr(str(zoo.experiment))), "hub.md", "exec"), {})
    assert sorted(hub.files("user/sums-generator")) == [".gitattributes", "README.md", "generator.safetensors"]


def test_a_hub_that_does_not_answer_is_told_from_a_model_that_is_not_there(hub, generator, monkeypatch):
    generator.push_to_hub("ada/sums")
    hub.outage = 503
    said = r"The model ada/sums is not here, and cannot be had from the hub: .*; try again, or give a bundle"
    with pytest.raises(LoragenInferError, match=said):
        LoraGenerator.from_pretrained("ada/sums")
    hub.outage = None
    hub.breaks_off = True  # in the midst of the file
    with pytest.raises(LoragenInferError, match=said):
        LoraGenerator.from_pretrained("ada/sums")
    hub.breaks_off = False
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/dev/null/cache")
    with pytest.raises(LoragenInferError, match=r"cannot be had from the hub: .*(Not a directory|cannot be)"):
        LoraGenerator.from_pretrained("ada/sums")
