"""The prompt encoder is the SentenceTransformer, with its limits said aloud."""

import json
import logging
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loragen_infer import LoragenInferError, PromptEncoder
from loragen_infer.models.locate import locate_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

PROMPTS = ["What is 17 + 25?", "Name the capital of France.", "Spell 'cat' backward.", "ok"]


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(locate_model("all-MiniLM-L6-v2", kind="text encoder"))


def test_shape_dtype_and_length(encoder):
    embeddings_PD = encoder.encode(PROMPTS)
    assert embeddings_PD.shape == (4, 384) == (len(PROMPTS), encoder.embedding_dim)
    assert embeddings_PD.dtype == torch.float32
    assert embeddings_PD.device.type == "cpu"
    assert not embeddings_PD.requires_grad
    torch.testing.assert_close(embeddings_PD.norm(dim=1), torch.ones(4))


def test_equals_the_library_itself(encoder, folder):
    library = SentenceTransformer(str(folder), device="cpu")
    expected_PD = library.encode(PROMPTS, normalize_embeddings=True, convert_to_tensor=True)
    torch.testing.assert_close(encoder.encode(PROMPTS), expected_PD.clone(), rtol=0, atol=1e-6)


def test_order_and_batches_do_not_matter(encoder):
    embeddings_PD = encoder.encode(PROMPTS)
    torch.testing.assert_close(encoder.encode(PROMPTS[::-1]).flip(0), embeddings_PD, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.encode(PROMPTS, batch_size=1), embeddings_PD, rtol=0, atol=1e-5)


def test_tells_texts_apart_by_meaning(encoder):
    sum_D, other_sum_D, capital_D = encoder.encode(["What is 17 + 25?", "Compute 3 + 88.", "Where is Paris?"])
    assert sum_D @ other_sum_D > sum_D @ capital_D + 0.2


@settings(max_examples=8, deadline=None)
@given(prompt=st.text(min_size=1, max_size=60).filter(str.strip))
def test_any_text_has_an_embedding_of_length_one(encoder, prompt):
    embedding_1D = encoder.encode([prompt])
    torch.testing.assert_close(embedding_1D.norm(), torch.tensor(1.0))


def test_no_prompt_is_refused(encoder):
    with pytest.raises(LoragenInferError, match="no prompt to encode; give at least one"):
        encoder.encode([])


@pytest.mark.parametrize("blank", ["", "  \n\t"])
def test_a_blank_prompt_is_refused_by_its_number(encoder, blank):
    with pytest.raises(LoragenInferError, match="Prompt 2 of 3 has no text"):
        encoder.encode(["a", blank, "b"])


def test_truncation_is_said_once_with_numbers(encoder, caplog):
    limit = encoder._model.max_seq_length
    over, under = "word " * (limit + 20), "word " * (limit - 10)
    assert len(under) > limit  # more characters than tokens: it has to be counted to be let pass
    with caplog.at_level(logging.WARNING, logger="loragen_infer"):
        long_PD = encoder.encode([over, under, "word", over + "word"])
    [message] = caplog.messages
    assert message.startswith(f"2 of 4 prompts are longer than the {limit} tokens that all-MiniLM-L6-v2 reads")
    # "word" is one token, and two special tokens stand around each prompt.
    assert message.endswith(f"{2 * 22 + 1} tokens are ignored.")
    torch.testing.assert_close(long_PD[0], long_PD[3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("character", ["数", "각"])  # the second is three tokens
def test_a_prompt_of_few_but_costly_characters_is_counted_too(encoder, caplog, character):
    # Apart, since a word of very many characters is a single unknown token.
    count = (encoder._model.max_seq_length - 1) // len(encoder._model.tokenizer.tokenize(character))
    encoder.encode([" ".join(character * count)])
    [message] = caplog.messages
    assert message.startswith("1 of 1 prompts are longer")


def test_no_warning_where_nothing_is_cut(encoder, caplog):
    encoder.encode(["word " * (encoder._model.max_seq_length - 10)])
    assert caplog.messages == []


def test_many_calls_can_share_one_warning(encoder, caplog):
    over = "word " * encoder.module.max_seq_length
    with encoder.one_truncation_warning():
        for _ in range(3):
            encoder.encode([over, "word"])
        assert caplog.messages == []
    [message] = caplog.messages
    assert message.startswith("3 of 6 prompts are longer")
    assert "6 tokens are ignored" in message
    encoder.encode([over])
    assert len(caplog.messages) == 2


def test_half_a_character_is_refused(encoder):
    with pytest.raises(LoragenInferError, match=r"Prompt 2 of 2 holds half a character .* at place 3"):
        encoder.encode(["a", "ab\udc80"])


def test_tokens_and_embeddings_for_training_give_what_encode_gives_and_gradients(folder):
    encoder = PromptEncoder(str(folder))
    features = encoder.tokenize(PROMPTS)
    assert all(isinstance(value, torch.Tensor) and len(value) == len(PROMPTS) for value in features.values())
    torch.testing.assert_close(encoder.embed(features), encoder.encode(PROMPTS), rtol=0, atol=1e-6)
    encoder.module.requires_grad_(True).train()
    embedding_nD = encoder.embed(features)
    assert embedding_nD.dtype == torch.float32
    (embedding_nD[0] @ embedding_nD[1]).backward()
    assert all(p.grad is not None for name, p in encoder.module.named_parameters() if "pooler" not in name)
    frozen_nD = encoder.encode(PROMPTS)  # dropout is off here whatever the mode
    assert torch.equal(encoder.encode(PROMPTS), frozen_nD)
    assert not frozen_nD.requires_grad
    assert encoder.module.training
    # A layer that trains takes what encode returns, which it would not take of inference mode.
    torch.nn.Linear(384, 2)(frozen_nD).sum().backward()


def test_fine_tuned_weights_replace_the_loaded_ones(encoder, folder):
    state = {name: value.clone() for name, value in encoder.module.state_dict().items()}
    name = "0.model.encoder.layer.5.output.dense.weight"
    state[name] += 0.1 * torch.randn(state[name].shape, generator=torch.Generator().manual_seed(0))
    tuned = PromptEncoder(str(folder), state=state)
    assert torch.equal(tuned.module.state_dict()[name], state[name])
    assert not torch.allclose(tuned.encode(PROMPTS), encoder.encode(PROMPTS), atol=1e-3)
    part = PromptEncoder(str(folder), state={name: state[name]})
    assert torch.equal(part.encode(PROMPTS), tuned.encode(PROMPTS))
    assert part.fingerprint == tuned.fingerprint != encoder.fingerprint


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"nonsense": torch.zeros(1)}, "not of the text encoder .*: it has no weight 'nonsense'; use the encoder"),
        (
            {"0.model.embeddings.LayerNorm.weight": torch.zeros(3)},
            r"size mismatch for 0.model.embeddings.LayerNorm.weight",
        ),
    ],
)
def test_weights_of_another_encoder_are_refused_by_name(folder, state, message):
    with pytest.raises(LoragenInferError, match=message):
        PromptEncoder(str(folder), state=state)


def test_weights_are_frozen(encoder):
    assert not any(parameter.requires_grad for parameter in encoder._model.parameters())
    assert not encoder._model.training


def test_a_copy_in_a_folder_is_the_same_encoder(encoder, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "my-encoder")
    torch.testing.assert_close(PromptEncoder(str(copy)).encode(PROMPTS), encoder.encode(PROMPTS), rtol=0, atol=1e-6)


def test_the_fingerprint_is_of_the_content_whatever_its_place_name_and_storage(encoder, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "my-encoder")
    (copy / "README.md").write_text("other words")
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings, "transformers_version": "9.9", "_name_or_path": "x"}))
    assert PromptEncoder(str(copy)).fingerprint == encoder.fingerprint
    PromptEncoder(str(folder)).module.save_pretrained(str(tmp_path / "saved"))  # as the installed libraries write it
    assert PromptEncoder(str(tmp_path / "saved")).fingerprint == encoder.fingerprint


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("tokenizer_config.json", {"do_lower_case": False}),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}),
        ("sentence_bert_config.json", {"max_seq_length": 128}),
        ("config.json", {"num_attention_heads": 6}),
        ("model.safetensors", {}),
    ],
)
def test_the_fingerprint_changes_with_what_changes_an_embedding(encoder, folder, tmp_path, file, changes):
    place = shutil.copytree(folder, tmp_path / "other") / file
    if changes:
        place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))
    else:
        tensors = load_file(place)
        tensors["embeddings.LayerNorm.bias"][0] += 1e-6
        save_file(tensors, place, {"format": "pt"})
    assert PromptEncoder(str(tmp_path / "other")).fingerprint != encoder.fingerprint


def test_a_snapshot_tells_its_name_and_revision(folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--sentence-transformers--all-MiniLM-L6-v2" / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    (tmp_path / "models--sentence-transformers--all-MiniLM-L6-v2" / "refs").mkdir()
    (tmp_path / "models--sentence-transformers--all-MiniLM-L6-v2" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name, known_as in (("all-MiniLM-L6-v2",) * 2, (str(snapshot), "sentence-transformers/all-MiniLM-L6-v2")):
        encoder = PromptEncoder(name)
        assert (encoder.name, encoder.revision) == (known_as, "a" * 40)
    assert PromptEncoder("all-MiniLM-L6-v2", revision="b" * 40).revision is None  # the package stands in


def test_a_folder_that_is_no_encoder_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        LoragenInferError, match=r"The text encoder '.*' \(.*\) cannot be loaded as a Sentence"
    ) as caught:
        PromptEncoder(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_named(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(LoragenInferError, match="cannot be loaded as a SentenceTransformer: "):
        PromptEncoder(str(copy))


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(LoragenInferError, match=f"The device '{device}' cannot be used") as caught:
        PromptEncoder(device=device)
    assert "\n" not in str(caught.value)
