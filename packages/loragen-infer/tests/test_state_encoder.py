"""The encoder of states gives what the language model itself computes, and tells its model and layer again."""

import json
import logging
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loragen_infer import LoragenInferError, PromptEncoder, StateEncoder
from loragen_infer.encoder import Condition, load_encoder
from loragen_infer.encoder.state_encoder import REFERENCES
from loragen_infer.models.base_model import load_base_model
from loragen_infer.samples import Example, tokenize_example
from torch.nn.functional import normalize
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
)

PROMPTS = ["What is 17 + 25?", "Name the capital of France.", "Spell 'cat' backward.", "ok", "Spell 'dog' backward."]


@pytest.fixture(scope="module")
def states(zoo) -> StateEncoder:
    return StateEncoder(str(zoo.model), layer=1)


@pytest.fixture(scope="module")
def plain(make, llama, tmp_path_factory):
    """The folder of a model without a chat template, whose prompts begin with nothing in common."""
    folder = tmp_path_factory.mktemp("plain")
    llama.save_pretrained(folder)
    make.tokenizer().save_pretrained(folder)
    return folder


def own_states(name, layer, prompts):
    """What transformers gives: the output of a layer at the last token of each prompt, read by itself."""
    model, tokenizer = load_base_model(str(name))
    found = []
    model.model.layers[layer - 1].register_forward_hook(lambda _module, _inputs, output: found.append(output[0, -1]))
    for prompt in prompts:
        item = tokenize_example(tokenizer, Example(prompt=prompt, response="x"))
        with torch.no_grad():
            model(torch.tensor([item.input_ids[: item.num_prompt_tokens]]))
    return normalize(torch.stack(found), dim=1)


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("which", ["template", "plain"])
def test_equals_the_states_of_the_whole_model_less_what_all_prompts_share(zoo, plain, which, layer):
    name = zoo.model if which == "template" else plain
    encoder = StateEncoder(str(name), layer=layer)
    embedding_nD = encoder.encode(PROMPTS)
    assert embedding_nD.shape == (5, 32) == (5, encoder.embedding_dim)
    assert embedding_nD.dtype == torch.float32
    assert not embedding_nD.requires_grad
    shared_D = own_states(name, layer, REFERENCES).mean(dim=0)
    expected_nD = normalize(own_states(name, layer, PROMPTS) - shared_D, dim=1)
    torch.testing.assert_close(embedding_nD, expected_nD, rtol=0, atol=1e-5)


SMALL = {"vocab_size": 98, "hidden_size": 32, "num_hidden_layers": 4, "eos_token_id": 1, "pad_token_id": 2}
HEADS = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=98, n_embd=32, n_layer=4, n_head=4, n_positions=256, eos_token_id=1, bos_token_id=1),
        MistralConfig(**SMALL, **HEADS, sliding_window=8),
        Qwen3Config(**SMALL, **HEADS, head_dim=8),
        Gemma3TextConfig(**SMALL, **HEADS, head_dim=8, sliding_window=8),
        MambaConfig(**SMALL, state_size=4),
    ],
    ids=lambda config: config.model_type,
)
def test_models_of_any_build_give_the_hidden_states_that_they_show(make, tmp_path, config):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    make.tokenizer(template=True).save_pretrained(tmp_path)
    model, tokenizer = load_base_model(str(tmp_path))

    def shown(prompts):
        found = []
        for prompt in prompts:
            item = tokenize_example(tokenizer, Example(prompt=prompt, response="x"))
            ids = torch.tensor([item.input_ids[: item.num_prompt_tokens]])
            with torch.no_grad():
                # Mamba leaves out the embeddings.
                found.append(
                    model(ids, output_hidden_states=True).hidden_states[1 if config.model_type == "mamba" else 2][0, -1]
                )
        return normalize(torch.stack(found), dim=1)

    expected_nD = normalize(shown(PROMPTS) - shown(REFERENCES).mean(dim=0), dim=1)
    embedding_nD = StateEncoder(str(tmp_path), layer="middle").encode(PROMPTS)
    # The states of fresh weights are nearly alike, so that taking off what they share shows the rounding.
    torch.testing.assert_close(embedding_nD, expected_nD, rtol=0, atol=1e-3)


def test_order_batches_and_company_do_not_matter(states):
    embedding_nD = states.encode(PROMPTS)
    torch.testing.assert_close(states.encode(PROMPTS[::-1]).flip(0), embedding_nD, rtol=0, atol=1e-5)
    torch.testing.assert_close(states.encode(PROMPTS, batch_size=1), embedding_nD, rtol=0, atol=1e-5)
    assert torch.equal(states.encode([*PROMPTS, "ok"])[-1], states.encode(["x" * 50, "ok"])[1])
    assert torch.equal(states.encode(PROMPTS), embedding_nD)


def test_a_model_that_is_stored_in_half_precision_computes_in_float32(zoo, make, tmp_path):
    AutoModelForCausalLM.from_pretrained(zoo.model, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    make.tokenizer(template=True).save_pretrained(tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32).save_pretrained(tmp_path / "full")
    make.tokenizer(template=True).save_pretrained(tmp_path / "full")
    half, full = (StateEncoder(str(tmp_path / name), layer=2) for name in ("half", "full"))
    assert torch.equal(half.encode(PROMPTS), full.encode(PROMPTS))
    assert half.fingerprint == full.fingerprint


def test_a_prompt_that_is_too_long_loses_its_beginning_and_is_told_of(states, caplog):
    with caplog.at_level(logging.WARNING, logger="loragen_infer"):
        first_nD = states.encode(["a" * 300 + "b" * 300, "c" * 200 + "b" * 300, "ok"])
    (message,) = caplog.messages
    assert message.startswith(f"2 of 3 prompts are longer than the 256 tokens that {states.name} reads: ")
    torch.testing.assert_close(first_nD[0], first_nD[1], rtol=0, atol=1e-6)
    caplog.clear()
    with states.one_truncation_warning():
        for _ in range(3):
            states.encode(["a" * 300, "ok"])
    (message,) = caplog.messages
    assert message.startswith("3 of 6 prompts are longer")


def test_what_is_no_prompt_is_refused(states):
    with pytest.raises(LoragenInferError, match="There is no prompt to encode"):
        states.encode([])
    with pytest.raises(LoragenInferError, match="Prompt 2 of 2 has no text"):
        states.encode(["a", " "])


def test_states_are_kept_in_a_cache_that_knows_model_and_layer(zoo, tmp_path, monkeypatch):
    first = StateEncoder(str(zoo.model), layer=1, cache_dir=tmp_path).encode(PROMPTS)
    other = StateEncoder(str(zoo.model), layer=2, cache_dir=tmp_path).encode(PROMPTS)
    again = StateEncoder(str(zoo.model), layer=1, cache_dir=tmp_path)
    monkeypatch.delattr(StateEncoder, "_directions")  # nothing is left to compute
    assert torch.equal(again.encode(PROMPTS), first)
    assert not torch.allclose(other, first, atol=0.1)
    assert len(list(tmp_path.glob("*.sqlite"))) == 2


def test_the_fingerprint_is_of_what_a_state_hangs_on(zoo, make, states, tmp_path):
    shutil.copytree(zoo.model, tmp_path / "copy")
    assert StateEncoder(str(tmp_path / "copy"), layer=1).fingerprint == states.fingerprint
    assert StateEncoder(str(zoo.model), layer="middle").fingerprint == states.fingerprint  # of two layers
    found = {states.fingerprint, StateEncoder(str(zoo.model), layer=2).fingerprint}
    config = json.loads((zoo.model / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(zoo.model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "weight")
    make.tokenizer(template=True).save_pretrained(tmp_path / "weight")
    found.add(StateEncoder(str(tmp_path / "weight"), layer=1).fingerprint)
    make.tokenizer().save_pretrained(tmp_path / "copy")
    (tmp_path / "copy" / "chat_template.jinja").unlink(missing_ok=True)
    found.add(StateEncoder(str(tmp_path / "copy"), layer=1).fingerprint)
    shutil.copytree(zoo.model, tmp_path / "turned")
    rope = {**config.get("rope_parameters", {}), "rope_theta": 500_000.0, "rope_type": "default"}
    config |= {"rope_parameters": rope, "rope_theta": 500_000.0}
    (tmp_path / "turned" / "config.json").write_text(json.dumps(config))
    found.add(StateEncoder(str(tmp_path / "turned"), layer=1).fingerprint)
    assert len(found) == 5


@pytest.mark.parametrize("layer", [3, 99])
def test_a_layer_that_is_not_there_is_refused_with_those_that_are(zoo, layer):
    with pytest.raises(LoragenInferError, match=rf"layer {layer} of the base model .*, which has the layers 1 to 2;"):
        StateEncoder(str(zoo.model), layer=layer)


def test_weights_that_make_nan_are_said(zoo, make, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(zoo.model)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path)
    make.tokenizer(template=True).save_pretrained(tmp_path)
    with pytest.raises(LoragenInferError, match="makes NaN or Inf of a prompt at layer 1; take another layer"):
        StateEncoder(str(tmp_path), layer=1).encode(PROMPTS)


def test_both_are_the_two_side_by_side_with_equal_weight(zoo, encoder, states, tmp_path):
    both = load_encoder(
        Condition.parse("both:1"), text_encoder="all-MiniLM-L6-v2", condition_model=str(zoo.model), cache_dir=tmp_path
    )
    embedding_nD = both.encode(PROMPTS)
    assert embedding_nD.shape == (5, both.embedding_dim) == (5, 384 + 32)
    torch.testing.assert_close(embedding_nD.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(2**0.5 * embedding_nD[:, :384], encoder.encode(PROMPTS), rtol=0, atol=1e-5)
    torch.testing.assert_close(2**0.5 * embedding_nD[:, 384:], states.encode(PROMPTS), rtol=0, atol=1e-5)
    assert torch.equal(both.encode(PROMPTS), embedding_nD)
    assert len(list(tmp_path.glob("*.sqlite"))) == 2
    assert len({both.fingerprint, encoder.fingerprint, states.fingerprint}) == 3
    record = both.record
    assert record["condition"] == "both:1"
    assert record["text_encoder_fingerprint"] == encoder.fingerprint
    assert record["condition_model_fingerprint"] == states.fingerprint
    both.to("cpu")
    assert torch.equal(both.encode(PROMPTS), embedding_nD)


def test_the_condition_decides_the_encoder_and_what_it_needs(zoo):
    assert isinstance(load_encoder(Condition.parse("sentence"), text_encoder="all-MiniLM-L6-v2"), PromptEncoder)
    assert isinstance(load_encoder(Condition.parse("lm:2"), condition_model=str(zoo.model)), StateEncoder)
    with pytest.raises(LoragenInferError, match=r"lm:2 takes states of the base model, .*; name it as condition_model"):
        load_encoder(Condition.parse("lm:2"))
    with pytest.raises(LoragenInferError, match="both:2 takes embeddings of sentences; name a text encoder"):
        load_encoder(Condition.parse("both:2"), condition_model=str(zoo.model))
    missing = r"condition_model, whose states are in the condition lm:2: The base model '/no/model' does not exist"
    with pytest.raises(LoragenInferError, match=missing):
        load_encoder(Condition.parse("lm:2"), condition_model="/no/model")


@pytest.mark.parametrize("text", ["sentence", "lm:1", "lm:middle", "both:12", "both:middle"])
def test_conditions_are_read_and_written_alike(text):
    assert str(Condition.parse(text)) == text


@pytest.mark.parametrize("text", ["", "lm", "lm:", "lm:0", "lm:-1", "lm:1.5", "LM:3", "sentence:3", "lm:٣", "lm:3\n"])
def test_what_is_no_condition_is_refused_with_what_is(text):
    with pytest.raises(ValueError, match="where 'sentence', 'lm:LAYER' or 'both:LAYER' belongs"):
        Condition.parse(text)


@given(st.text(max_size=12) | st.from_regex(r"(lm|both):[0-9a-z]{0,8}", fullmatch=True))
def test_any_text_is_a_condition_that_means_the_same_written_again_or_refused(text):
    try:
        condition = Condition.parse(text)
    except ValueError:
        return
    assert Condition.parse(str(condition)) == condition


def test_the_real_model_tells_texts_apart_by_what_is_asked():
    encoder = StateEncoder("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert (encoder.name, encoder.layer, encoder.embedding_dim) == ("HuggingFaceTB/SmolLM2-135M-Instruct", 15, 576)
    texts = ["What is 17 + 25?", "Compute 3 + 88.", "Translate to French: house", "Translate English words to French"]
    sum_D, other_sum_D, house_D, translate_D = encoder.encode(texts)
    assert sum_D @ other_sum_D > sum_D @ house_D + 0.2
    assert house_D @ translate_D > sum_D @ translate_D + 0.2
