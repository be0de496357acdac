"""The bundle comes back to the bit, and whatever is wrong with one is said in one sentence."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_tokenizer import TokenStats
from loragen_infer import GeneratorBundle, LoragenInferError
from loragen_infer.bundle import find_bundle
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def refused(path, message):
    with pytest.raises(LoragenInferError, match=message) as caught:
        GeneratorBundle.load(path)
    assert "\n" not in str(caught.value)


def parts(file):
    with safe_open(file, framework="pt") as reader:
        return load_file(file), dict(reader.metadata())


@pytest.fixture
def rewritten(zoo, tmp_path):
    """A function that writes the zoo's bundle with changed metadata and tensors (None removes one)."""

    def write(metadata=None, tensors=None):
        old_tensors, old_metadata = parts(zoo.file)
        new_tensors = {k: v for k, v in (old_tensors | (tensors or {})).items() if v is not None}
        new_metadata = {k: v for k, v in (old_metadata | (metadata or {})).items() if v is not None}
        save_file(new_tensors, tmp_path / "changed.safetensors", new_metadata)
        return tmp_path / "changed.safetensors"

    return write


def test_comes_back_to_the_bit(zoo):
    loaded = GeneratorBundle.load(zoo.file)
    expected = zoo.bundle.generator.state_dict()
    assert loaded.generator.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.generator.state_dict().items())
    assert loaded.generator.config == zoo.bundle.generator.config
    assert not loaded.generator.training
    assert loaded.layout == zoo.bundle.layout
    assert torch.equal(loaded.stats.mean, zoo.bundle.stats.mean)
    assert torch.equal(loaded.stats.std, zoo.bundle.stats.std)
    assert (loaded.stats.count, loaded.stats.floor) == (zoo.bundle.stats.count, zoo.bundle.stats.floor)
    assert loaded.text_encoder_name == "all-MiniLM-L6-v2"
    assert loaded.fingerprint == zoo.bundle.fingerprint


@settings(max_examples=12, deadline=None)
@given(
    block=st.sampled_from(["sequential", "dual"]),
    pooling=st.sampled_from(["mean", "attention"]),
    expander=st.sampled_from(["basis", "broadcast"]),
    centering=st.sampled_from(["running", "none"]),
    num_hyperconv_blocks=st.integers(0, 2),
    film=st.booleans(),
)
def test_every_kind_of_generator_answers_alike_after_loading(zoo, make, tmp_path_factory, **options):
    bundle = make.bundle(zoo.adapters, **options)
    loaded = GeneratorBundle.load(bundle.save(tmp_path_factory.mktemp("bundle") / "x.safetensors"))
    condition_BPD = torch.randn(2, 3, 384)
    with torch.inference_mode():
        assert torch.equal(loaded.generator(condition_BPD), bundle.generator(condition_BPD))
    assert loaded.fingerprint == bundle.fingerprint


def test_saving_twice_gives_the_same_bytes(zoo, tmp_path):
    first, second = zoo.bundle.save(tmp_path / "a"), zoo.bundle.save(tmp_path / "b")
    # The order of the metadata is the format library's own, so only the tensors' bytes are compared.
    for name, value in parts(first)[0].items():
        assert torch.equal(value, parts(second)[0][name])
    assert parts(first)[1] == parts(second)[1]


def test_the_metadata_name_what_wrote_it(zoo):
    metadata = parts(zoo.file)[1]
    assert metadata["format"] == "loragen-bundle"
    assert metadata["format_version"] == "1"
    assert json.loads(metadata["versions"]).keys() == {"hyperconv", "lora-tokenizer", "loragen-infer", "torch"}


def test_a_file_a_final_model_and_an_experiment_folder_all_lead_to_it(zoo):
    for path in (zoo.file, zoo.file.parent, zoo.experiment, str(zoo.experiment)):
        assert find_bundle(path) == zoo.file
        assert GeneratorBundle.load(path).fingerprint == zoo.bundle.fingerprint


def test_missing_and_empty_places_are_named(tmp_path):
    refused(tmp_path / "missing", "missing does not exist; give a bundle, a final_model or experiment folder")
    refused(tmp_path, r"holds no generator\.safetensors; give a bundle")


@pytest.mark.parametrize("keep", [0, 5, 500, -1])
def test_a_truncated_file_is_named(zoo, tmp_path, keep):
    (tmp_path / "cut.safetensors").write_bytes(zoo.file.read_bytes()[:keep])
    refused(tmp_path / "cut.safetensors", r"cut\.safetensors is not a readable bundle \(.*\); copy or train it again")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_in_the_header_is_never_a_raw_error(zoo, tmp_path_factory, data):
    content = bytearray(zoo.file.read_bytes())
    header_size = 8 + int.from_bytes(content[:8], "little")
    position = data.draw(st.integers(0, header_size - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    file = tmp_path_factory.mktemp("flipped") / "x.safetensors"
    file.write_bytes(content)
    with contextlib.suppress(LoragenInferError):  # a flip in a text such as a version is no damage
        GeneratorBundle.load(file)


def test_other_safetensors_files_are_named(zoo, tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", r"other\.safetensors is a safetensors file but no generator bundle")
    refused(zoo.adapters[0] / "adapter_model.safetensors", "is a safetensors file but no generator bundle")


def test_a_pickle_is_not_opened(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(Payload(), tmp_path / "evil.safetensors")
    refused(tmp_path / "evil.safetensors", "is not a readable bundle")
    assert not (tmp_path / "ran").exists()


def test_a_newer_format_asks_for_an_upgrade(rewritten):
    refused(rewritten({"format_version": "2"}), "has bundle format 2, newer than 1; upgrade with: pip install -U")


@pytest.mark.parametrize("key", ["format_version", "generator_config", "layout", "text_encoder_name"])
def test_a_missing_key_is_named(rewritten, key):
    refused(rewritten({key: None}), rf"is a damaged bundle \(there is no '{key}'\); copy or train it again")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format_version", "one"),
        ("generator_config", "{"),
        ("generator_config", "[]"),
        ("generator_config", "null"),
        ("generator_config", '"text"'),
        ("generator_config", '{"hidden_dimension": 3}'),
        ("generator_config", '{"hidden_dim": "3"}'),
        ("generator_config", "[" * 200_000),
        ("layout", "{"),
        ("layout", "[]"),
        ("layout", '{"format": 99}'),
        ("layout", "[" * 200_000),
    ],
)
def test_a_damaged_value_is_one_sentence(rewritten, key, value):
    refused(rewritten({key: value}), r"changed\.safetensors is a damaged bundle \(")


def test_a_config_that_does_not_fit_the_weights_is_named(zoo, rewritten):
    config = zoo.bundle.generator.config.to_dict()
    refused(rewritten({"generator_config": json.dumps({**config, "film": False})}), r"is a damaged bundle \(.*film")
    refused(rewritten({"generator_config": json.dumps({**config, "num_basis": 3})}), "size mismatch")


def test_a_config_that_claims_more_than_the_file_holds_allocates_nothing(zoo, rewritten):
    config = {**zoo.bundle.generator.config.to_dict(), "hidden_dim": 10**7}
    refused(rewritten({"generator_config": json.dumps(config)}), "parameters, more than it holds")
    config = {**zoo.bundle.generator.config.to_dict(), "num_hyperconv_blocks": 10**12}
    refused(rewritten({"generator_config": json.dumps(config)}), "parameters, more than it holds")


def test_missing_weights_and_statistics_are_named(rewritten):
    refused(rewritten(tensors={"generator.output_scale": None}), "is a damaged bundle")
    refused(rewritten(tensors={"stats.std": None}), "the token statistics lack the tensor 'std'")
    refused(rewritten(tensors={"stats.count": torch.tensor(float("inf"))}), "is a damaged bundle")


def test_parts_that_do_not_belong_together_are_named(zoo, rewritten):
    stats = {"stats.mean": torch.zeros(14, 31), "stats.std": torch.ones(14, 31)}
    refused(rewritten(tensors=stats), r"layout \(14, 32\), generator \(14, 32\), statistics \(14, 31\)")


def test_the_fingerprint_changes_with_any_weight_or_statistic(zoo, make):
    bundle = make.bundle(zoo.adapters)
    seen = {bundle.fingerprint}
    assert len(bundle.fingerprint) == 16
    states = bundle.generator.state_dict()
    for value in states.values():
        flat = value.view(-1)
        old = flat[-1].clone()
        flat[-1] = torch.nextafter(old, old + 1)
        seen.add(bundle.fingerprint)
        flat[-1] = old
    assert len(seen) == 1 + len(states)
    assert bundle.fingerprint in seen
    for name in ("mean", "std"):
        changed = getattr(bundle.stats, name) * 1.0001 + 0.1
        seen.add(dataclasses.replace(bundle, stats=dataclasses.replace(bundle.stats, **{name: changed})).fingerprint)
    fewer = TokenStats(mean=bundle.stats.mean, std=bundle.stats.std, count=1, floor=bundle.stats.floor)
    seen.add(dataclasses.replace(bundle, stats=fewer).fingerprint)
    config = dataclasses.replace(bundle.layout.config, lora_alpha=9)
    seen.add(dataclasses.replace(bundle, layout=dataclasses.replace(bundle.layout, config=config)).fingerprint)
    assert len(seen) == 1 + len(states) + 4


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(zoo, tmp_path):
    target = tmp_path / "generator.safetensors"
    target.write_bytes(b"old")
    # A limit on the size of files is as near to a full disk as a test can get without one.
    script = (
        "import resource, sys; from pathlib import Path; from loragen_infer import GeneratorBundle, LoragenInferError\n"
        "bundle = GeneratorBundle.load(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: bundle.save(Path(sys.argv[2]))\n"
        "except LoragenInferError as error: print(error)"
    )
    command = [sys.executable, "-c", script, str(zoo.file), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{target} cannot be written: "), done
    assert [path.name for path in tmp_path.iterdir()] == ["generator.safetensors"]
    assert target.read_bytes() == b"old"
