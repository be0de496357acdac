"""What an adapter's samples begin with is read once, and changes nothing of what comes out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_tokenizer import read_adapter
from loragen_infer.adapters import AdapterStack, BatchedLora, reading
from loragen_infer.adapters.reading import Batch, num_read_once, num_tokens, reading_once
from loragen_infer.likelihood import read_tokens, response_nll
from loragen_infer.samples import Example, TokenizedExample, tokenize_example

INSTRUCTIONS = ("Add: ", "Take the square root of ", "Say ")
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(lambda tokens: tokens * 9)
SAMPLES = st.lists(st.lists(TOKENS, min_size=1, max_size=3), min_size=1, max_size=3)


@given(prompts=SAMPLES, common=st.lists(st.integers(0, 2), max_size=3))
def test_what_is_read_once_is_the_beginning_of_every_prompt_of_the_adapter_but_for_its_last_token(prompts, common):
    samples = [
        [
            TokenizedExample(input_ids=[*common, *prompt, 7], num_prompt_tokens=len(common) + len(prompt))
            for prompt in own
        ]
        for own in prompts
    ]
    batches = [Batch.of(own) for own in samples]
    numbers = num_read_once(batches)
    for own, number in zip(samples, numbers, strict=True):
        assert number < min(item.num_prompt_tokens for item in own)
        assert len({tuple(item.input_ids[:number]) for item in own}) == 1
    # All or none, and never more work than reading everything of every sample.
    assert all(numbers) or not any(numbers)
    assert not any(numbers) or num_computed(batches, numbers) < num_computed(batches, [0] * len(batches))
    assert num_tokens(batches) >= num_computed(batches, numbers)


BATCHES = st.lists(
    st.builds(
        lambda num_samples, common, rest: Batch(num_samples, common + rest, common),
        st.integers(1, 8),
        st.integers(0, 300),
        st.integers(1, 150),
    ),
    max_size=5,
)


@given(batches=BATCHES)
def test_as_much_is_read_once_as_spares_most(batches):
    costs = [num_computed(batches, [0] * len(batches))]
    if all(batch.num_common for batch in batches):
        for most in range(1, max((batch.num_common for batch in batches), default=0) + 1):
            numbers = [min(batch.num_common, most) for batch in batches]
            costs.append(num_computed(batches, numbers) + reading._PASS)
    found = num_read_once(batches)
    assert num_computed(batches, found) + (reading._PASS if any(found) else 0) == min(costs)


def num_computed(batches, numbers) -> int:
    """Tokens that pass through the model, padding included."""
    rest = max((batch.longest - number for batch, number in zip(batches, numbers, strict=True)), default=0)
    return len(batches) * max(numbers, default=0) + sum(batch.num_samples for batch in batches) * rest


def test_batches_that_share_nothing_or_too_little_are_read_as_they_are():
    assert num_read_once([]) == []
    assert num_read_once([Batch(0, 0), Batch(8, 110, 90)]) == [0, 0]
    # What spares less than another pass takes is not.
    assert num_read_once([Batch(8, 28, 8)] * 2) == [0, 0]
    assert num_read_once([Batch(1, 110, 90)] * 4) == [0] * 4
    # An instruction that is longer than the others' is read by each sample as far as the others' samples are as long.
    assert num_read_once([Batch(8, 120, 100), Batch(8, 40, 20)]) == [100, 20]
    assert num_read_once([Batch(8, 120, 100), Batch(8, 119, 20)]) == [21, 20]


def test_the_copies_of_what_was_read_once_count_as_well():
    # 20 samples of 500 tokens, 480 of them read once: 880 are computed, but 10,000 have keys and values.
    assert num_read_once([Batch(20, 500, 480)]) == [480]
    assert num_tokens([Batch(20, 500, 480)]) == 2500
    assert num_tokens([Batch(20, 500)]) == 10_000


@pytest.mark.parametrize("counts", [(2, 3, 2), (1, 3, 2), (1, 1, 1)])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_likelihoods_and_gradients_are_those_of_reading_all(make, tmp_path, monkeypatch, attention, counts):
    model, tokenizer = make.llama(), make.tokenizer()
    model.set_attn_implementation(attention)
    samples = [
        [
            tokenize_example(tokenizer, Example(prompt=f"Hello. {instruction}{row}?", response="yes" * (row + 1)))
            for row in range(count)
        ]
        for instruction, count in zip(INSTRUCTIONS, counts, strict=True)
    ]
    adapters = [read_adapter(make.adapter(model, tmp_path / str(seed), seed=seed)) for seed in range(len(samples))]
    batched = BatchedLora(model, adapters[0].modules)
    read = []

    def watch(model, sequences, **options):
        read.append([tokenizer.decode(ids) for ids in sequences])
        return read_tokens(model, sequences, **options)

    monkeypatch.setattr(reading, "read_tokens", watch)
    monkeypatch.setattr(reading, "_PASS", 0)  # for so few tokens it would not pay
    found = []
    for is_shared in (True, False):
        stack = AdapterStack.of(adapters)
        weights = [*stack.a_Kri.values(), *stack.b_Kor.values()]
        for weight in weights:
            weight.requires_grad_()
        with reading_once(model, batched, stack, samples, is_shared=is_shared) as inputs:
            nll_B = response_nll(model, **inputs)
        nll_B.sum().backward()
        found.append([nll_B.detach(), *(weight.grad for weight in weights)])
    # The only sample of an adapter reads all that its last token does not.
    own = [
        f"Hello. {instruction}" + ("0?" if count == 1 else "")
        for instruction, count in zip(INSTRUCTIONS, counts, strict=True)
    ]
    assert read == ([own] if max(counts) > 1 else [])
    assert all(bool(gradient.any()) for gradient in found[0][1:])
    torch.testing.assert_close(found[0], found[1], atol=2e-3, rtol=1e-4)
