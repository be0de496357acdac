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
from loragen_infer import GeneratorBundle, LoragenInferError, TrainingTasks
from loragen_infer.bundle import find_bundle
from loragen_infer.evaluation.task_means import read_task_means
from loragen_infer.samples import prompt_hash
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
        # Without the seal, as the first bundles were written: what is wrong has to be found by what it is.
        new_metadata = {k: v for k, v in (old_metadata | {"sha256": None} | (metadata or {})).items() if v is not None}
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
    centering=st.sampled_from(["prompts", "none"]),
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


def full_bundle(zoo, make):
    """A bundle with everything that one may hold."""
    hashes = {"sums": frozenset([prompt_hash("1 + 1"), prompt_hash("2 + 3")]), "none": frozenset()}
    return dataclasses.replace(
        make.bundle(zoo.adapters),
        text_encoder_revision="0123abc",
        text_encoder_fingerprint="f" * 32,
        text_encoder_state={"0.model.embeddings.LayerNorm.weight": torch.rand(384)},
        training_tasks=TrainingTasks(
            names=("sums", "none", 'old "\u2028\x7f\x01'),
            prompt_hashes=hashes,
            sample_hashes={"sums": frozenset([prompt_hash("4 + 4")]), 'old "\u2028\x7f\x01': frozenset()},
        ),
        provenance={"experiment": "zoo ü"},
    )


@pytest.mark.parametrize("name", ["full.safetensors", "full.pt"])
def test_everything_in_a_full_bundle_comes_back_from_either_file(zoo, make, tmp_path, name):
    bundle = full_bundle(zoo, make)
    loaded = GeneratorBundle.load(bundle.save(tmp_path / name))
    for field in ("text_encoder_name", "text_encoder_revision", "text_encoder_fingerprint", "training_tasks"):
        assert getattr(loaded, field) == getattr(bundle, field)
    assert loaded.text_encoder_state.keys() == bundle.text_encoder_state.keys()
    assert loaded.provenance == {"experiment": "zoo ü"}
    assert loaded.fingerprint == bundle.fingerprint
    condition_BPD = torch.randn(2, 3, 384)
    with torch.inference_mode():
        assert torch.equal(loaded.generator(condition_BPD), bundle.generator(condition_BPD))


def test_what_does_not_generate_is_not_in_the_fingerprint_and_what_does_is(zoo, make):
    full = full_bundle(zoo, make)
    plain = dataclasses.replace(full, text_encoder_state=None)
    bare = dataclasses.replace(plain, training_tasks=None, provenance={}, text_encoder_revision=None)
    assert plain.fingerprint == bare.fingerprint == plain.with_base_model("another").fingerprint
    assert full.fingerprint != plain.fingerprint


def test_a_changed_generator_config_changes_the_fingerprint(zoo, make):
    bundle = make.bundle(zoo.adapters)
    before = bundle.fingerprint
    # No weight knows of it, and the adapter is another one.
    bundle.generator.config = dataclasses.replace(bundle.generator.config, basis_gain=4.0)
    assert bundle.fingerprint != before


def test_the_format_version_rises_only_where_an_old_reader_would_misread(zoo, make):
    full = full_bundle(zoo, make)
    assert full.format_version == 2
    assert dataclasses.replace(full, text_encoder_state=None).format_version == 1
    assert dataclasses.replace(full, text_encoder_state=None, condition="lm:3").format_version == 3


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_states_as_the_condition_come_back_and_are_in_the_fingerprint(zoo, tmp_path, name):
    states = {"condition": "lm:12", "condition_model_name": "lab/base", "condition_model_fingerprint": "e" * 32}
    bundle = dataclasses.replace(zoo.bundle, text_encoder_name=None, **states)
    loaded = GeneratorBundle.load(bundle.save(tmp_path / name))
    assert {field: getattr(loaded, field) for field in states} == states
    assert loaded.text_encoder_name is None
    assert loaded.fingerprint == bundle.fingerprint != zoo.bundle.fingerprint
    sentence = GeneratorBundle.load(zoo.file)
    assert (sentence.condition, sentence.condition_model_name) == ("sentence", None)


def test_a_damaged_condition_is_named(rewritten):
    refused(
        rewritten({"condition": "lm:x"}), r"is a damaged bundle \(condition is 'lm:x', where 'sentence', .* belongs"
    )
    refused(rewritten({"condition": "lm:3"}), r"is a damaged bundle \(there is no 'condition_model_name'\)")


@pytest.mark.parametrize("tuned", [False, True])
def test_a_bundle_of_the_first_layout_is_read_with_its_task_means(zoo, make, tmp_path, tuned):
    state = {"0.model.embeddings.LayerNorm.weight": torch.rand(384)} if tuned else None
    bundle = dataclasses.replace(zoo.bundle, text_encoder_state=state)
    means = {"condition_means": torch.randn(2, 384), "token_means": torch.randn(2, 14, 32)}
    file = make.old_bundle(tmp_path / "old.safetensors", bundle, names=("a", "b"), means=means)
    loaded = GeneratorBundle.load(file)
    assert loaded.fingerprint == bundle.fingerprint
    assert loaded.text_encoder_fingerprint is None
    assert loaded.training_tasks == TrainingTasks(names=("a", "b"))
    read = read_task_means(file)
    assert read.names == ("a", "b")
    assert torch.equal(read.condition_means, means["condition_means"])
    assert torch.equal(read.token_means[:], means["token_means"])
    assert read_task_means(zoo.file) is None


def test_the_first_pt_file_is_read_and_a_bundle_for_token_states_is_refused(zoo, make, tmp_path):
    bundle = zoo.bundle
    plain = {"state_dict": bundle.generator.state_dict(), "config": bundle.generator.config.to_dict()}
    plain |= {"stats": bundle.stats.to_tensors(), "layout": bundle.layout.to_json()}
    torch.save({**plain, "text_encoder_name": "x", "text_encoder_state": {}}, tmp_path / "generator_model.pt")
    loaded = GeneratorBundle.load(tmp_path)
    assert (loaded.fingerprint, loaded.text_encoder_name) == (bundle.fingerprint, "x")
    refused(
        make.old_bundle(tmp_path / "tokens.safetensors", bundle, condition_kind="tokens"),
        "was trained on 'tokens' as its condition, which is gone",
    )


def test_the_pt_file_is_plain_and_a_changed_bit_in_it_is_noticed(zoo, tmp_path):
    file = zoo.bundle.save(tmp_path / "generator_model.pt")
    content = torch.load(file, weights_only=True)
    assert {"state_dict", "config", "layout", "stats", "text_encoder_name"} <= content.keys()
    assert zoo.bundle.save(tmp_path / "again.pt").read_bytes() == file.read_bytes()
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    refused(file, "generator_model.pt is damaged: .* does not match its checksum; copy it again")


def test_a_lightning_checkpoint_is_refused_with_the_bundle_to_give(zoo, tmp_path):
    checkpoint = zoo.experiment / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6"}, checkpoint)
    refused(checkpoint, f"last.ckpt is a checkpoint for going on with training; the model to give is {zoo.file}")
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6"}, tmp_path / "last.ckpt")
    refused(tmp_path / "last.ckpt", "the model to give is results/final_model/generator.safetensors of its experiment")


def test_equal_bundles_give_equal_bytes_in_every_process(zoo, make, tmp_path):
    bundle = full_bundle(zoo, make)
    first = bundle.save(tmp_path / "a")
    for index in range(5):
        assert GeneratorBundle.load(first).save(tmp_path / f"again{index}").read_bytes() == first.read_bytes()
    script = "import sys; from loragen_infer import GeneratorBundle as B; B.load(sys.argv[1]).save(B_path(sys.argv[2]))"
    script = "from pathlib import Path as B_path; " + script
    subprocess.run([sys.executable, "-c", script, str(first), str(tmp_path / "b")], check=True)
    assert (tmp_path / "b").read_bytes() == first.read_bytes()
    assert load_file(first).keys() == parts(first)[0].keys()  # any reader of the format reads it


def test_a_bundle_without_a_seal_is_read(rewritten, zoo):
    assert GeneratorBundle.load(rewritten()).fingerprint == zoo.bundle.fingerprint


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_noticed(zoo, tmp_path_factory, data):
    content = bytearray(zoo.file.read_bytes())
    header_size = 8 + int.from_bytes(content[:8], "little")
    region = data.draw(st.sampled_from([(0, 8), (8, header_size), (header_size, len(content))]))
    position = data.draw(st.integers(region[0], region[1] - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    file = tmp_path_factory.mktemp("flipped") / "x.safetensors"
    file.write_bytes(content)
    if b'"sha256"' in content:
        refused(file, r"x\.safetensors")
    else:  # the name of the seal is all that can change unseen, where what is left of it is a name
        with contextlib.suppress(LoragenInferError):
            assert GeneratorBundle.load(file).fingerprint == zoo.bundle.fingerprint


def test_a_flipped_bit_in_the_weights_says_what_to_do(zoo, tmp_path):
    content = bytearray(zoo.file.read_bytes())
    content[-100] ^= 1
    (tmp_path / "x.safetensors").write_bytes(content)
    refused(
        tmp_path / "x.safetensors", r"x\.safetensors is damaged: its content does not match the SHA-256 .*; copy it"
    )


@pytest.mark.parametrize(
    ("metadata", "tensors", "reason"),
    [
        ({"provenance": "[]"}, {}, "provenance is no JSON object"),
        ({"training_tasks": "3"}, {}, "names of the training tasks are no list"),
        ({"training_tasks": '["a", "a"]'}, {}, "where different texts belong"),
        ({"training_tasks": '["a"]'}, {"training_tasks.1": torch.zeros(1, 8, dtype=torch.uint8)}, "index out of range"),
        ({"training_tasks": '["a"]'}, {"training_tasks.0": torch.zeros(1, 7, dtype=torch.uint8)}, "not 16 digits"),
    ],
)
def test_what_is_wrong_with_the_optional_parts_is_named(rewritten, metadata, tensors, reason):
    refused(rewritten(metadata, tensors), f"is a damaged bundle .*{reason}")


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
    refused(tmp_path / ("x" * 300), "xxx is longer than the system takes; give a shorter one")


@pytest.mark.parametrize("keep", [0, 5, 500, -1])
def test_a_truncated_file_is_named(zoo, tmp_path, keep):
    (tmp_path / "cut.safetensors").write_bytes(zoo.file.read_bytes()[:keep])
    refused(tmp_path / "cut.safetensors", r"cut\.safetensors is not a readable bundle \(.*\); copy or train it again")


def test_other_safetensors_files_are_named(zoo, tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", r"other\.safetensors is no generator bundle")
    refused(zoo.adapters[0] / "adapter_model.safetensors", "is no generator bundle")


def test_a_pickle_is_not_opened(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(Payload(), tmp_path / "evil.safetensors")
    refused(tmp_path / "evil.safetensors", "is not a readable bundle")
    assert not (tmp_path / "ran").exists()


def test_a_newer_format_asks_for_an_upgrade(rewritten):
    refused(rewritten({"format_version": "4"}), "has bundle format 4, newer than 3; upgrade with: pip install -U")


@pytest.mark.parametrize("key", ["format_version", "generator_config", "layout", "text_encoder_name"])
def test_a_missing_key_is_named(rewritten, key):
    refused(
        rewritten({key: None}),
        rf"is a damaged bundle \(there is no '{key.removeprefix('generator_')}'\); copy or train it again",
    )


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
    refused(rewritten({"generator_config": json.dumps(config)}), "size mismatch")
    config = {**zoo.bundle.generator.config.to_dict(), "num_hyperconv_blocks": 10**12}
    refused(rewritten({"generator_config": json.dumps(config)}), "blocks, more than it holds weights")


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
