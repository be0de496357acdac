"""How likely a model holds responses: in padded batches what it is one by one, with and without a common beginning."""

import pytest
import torch
from loragen_infer.likelihood import can_go_on, last_logits, pad_left, read_tokens, response_nll
from loragen_infer.samples import Example, TokenizedExample, tokenize_example
from transformers import AutoModelForCausalLM, MistralConfig, MptConfig

PREFIX = "Answer in one word: "
PAIRS = [("a?", "yes"), ("What is the name of the longest river?", "no"), ("bb", "a long answer, with many words")]


@pytest.fixture(scope="module")
def items(make) -> list[TokenizedExample]:
    tokenizer = make.tokenizer()
    return [tokenize_example(tokenizer, Example(prompt=PREFIX + prompt, response=text)) for prompt, text in PAIRS]


def one_by_one(model, items: list[TokenizedExample]) -> torch.Tensor:
    """Each sample by itself, without padding, a cache or a choice of logits."""
    sums = []
    for item in items:
        log_probs = model(torch.tensor([item.input_ids]), use_cache=False).logits[0].log_softmax(-1)
        positions = range(item.num_prompt_tokens, len(item.input_ids))
        sums.append(-sum(log_probs[position - 1, item.input_ids[position]] for position in positions))
    return torch.stack(sums)


@pytest.mark.parametrize("num_read", [0, 1, len(PREFIX)])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_batch_is_as_likely_as_its_samples_one_by_one(make, items, num_read, attention):
    model = make.llama()
    model.set_attn_implementation(attention)
    with torch.inference_mode():
        read = read_tokens(model, [items[0].input_ids[:num_read]] * len(items), padding=2)
        assert (read is None) == (num_read == 0)
        found = response_nll(model, items, padding=2, after=read)
        torch.testing.assert_close(found, one_by_one(model, items), atol=1e-3, rtol=1e-5)
    assert found.dtype == torch.float32


def test_the_padding_and_the_order_of_the_samples_are_no_matter(llama, items):
    with torch.inference_mode():
        found = response_nll(llama, items, padding=2)
        torch.testing.assert_close(response_nll(llama, items, padding=50), found, atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(response_nll(llama, items[::-1], padding=2).flip(0), found, atol=1e-3, rtol=1e-5)


def test_gradients_pass_through_the_common_beginning(make, items):
    gradients = []
    for num_read in (0, len(PREFIX)):
        model = make.llama()
        read = read_tokens(model, [items[0].input_ids[:num_read]] * len(items), padding=2)
        response_nll(model, items, padding=2, after=read).sum().backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    model = make.llama()
    one_by_one(model, items).sum().backward()
    gradients.append({name: value.grad for name, value in model.named_parameters()})
    assert all(bool(value.any()) for value in gradients[2].values())
    for found in gradients[:2]:
        torch.testing.assert_close(found, gradients[2], atol=2e-3, rtol=1e-4)


SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MISTRAL = MistralConfig(
    vocab_size=100, num_key_value_heads=2, intermediate_size=48, sliding_window=8, initializer_range=0.2, **SIZE
)
MPT = MptConfig(vocab_size=100, d_model=32, n_layers=2, n_heads=4, max_seq_len=128, initializer_range=0.2)


@pytest.mark.parametrize("config", [MISTRAL, MPT], ids=["sliding window", "counts places"])
def test_a_model_that_cannot_go_on_reads_everything(make, items, config):
    """What the first keeps is not all that the samples see; to the second, padding before them is a distance."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert can_go_on(make.llama())
    assert not can_go_on(model)
    with torch.inference_mode():
        assert read_tokens(model, [items[0].input_ids[: len(PREFIX)]] * 3, padding=2) is None
        torch.testing.assert_close(
            response_nll(model, items, padding=2), one_by_one(model, items), atol=1e-3, rtol=1e-5
        )


def test_the_last_logits_are_those_of_all_and_asked_for_by_their_places(make, items):
    model = make.llama().requires_grad_(False)
    inputs = pad_left([item.input_ids for item in items], padding=2, device="cpu")
    with torch.inference_mode():
        every = model(**inputs).logits
        asked = []

        def watch(_, args, kwargs):
            asked.append(kwargs["logits_to_keep"])

        hook = model.register_forward_pre_hook(watch, with_kwargs=True)
        found = last_logits(model, inputs, 4)
        hook.remove()
    torch.testing.assert_close(found, every[:, -4:])
    length = inputs["input_ids"].shape[1]
    assert asked[0].tolist() == list(range(length - 4, length))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("common", ["", PREFIX])
def test_samples_go_on_from_beginnings_of_different_lengths(make, attention, common):
    """Twice: what all begin with, and what some do, which is padded when it is read; neither is used up."""
    model, tokenizer = make.llama(), make.tokenizer()
    model.set_attn_implementation(attention)
    beginnings = ["Add: ", "Take the square root of "]
    owners = [0, 1, 1, 0, 1]
    items = [
        tokenize_example(tokenizer, Example(prompt=f"{common}{beginnings[owner]}{row}?", response="yes" * (row + 1)))
        for row, owner in enumerate(owners)
    ]

    def ids(text):
        return tokenizer(text)["input_ids"][: len(text)]

    with torch.inference_mode():
        whole = read_tokens(model, [ids(common)], padding=2)
        after = None if whole is None else whole.rows([0, 0])
        read = read_tokens(model, [ids(text) for text in beginnings], padding=2, after=after)
        assert read.num_tokens == tuple(len(common + text) for text in beginnings)
        expected = one_by_one(model, items)
        for _ in range(2):
            found = response_nll(model, items, padding=2, after=read.rows(owners))
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)


def test_a_padded_row_counts_its_positions_from_its_first_token(llama):
    read = read_tokens(llama, [[9, 9], [9]], padding=2)
    inputs = pad_left([[5, 6, 7], [8]], padding=2, device="cpu", after=read)
    assert inputs["input_ids"].tolist() == [[5, 6, 7], [2, 2, 8]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 1, 0, 0, 1]]
    assert inputs["position_ids"].tolist() == [[2, 3, 4], [1, 1, 1]]
