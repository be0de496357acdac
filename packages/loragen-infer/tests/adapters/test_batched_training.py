"""Gradients with checkpoints, wherever the backward pass runs, and compiled models."""

import pytest
import torch
from loragen_infer import AdapterStack, BatchedLora, LoragenInferError
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

IDS = torch.arange(5, 29).view(4, 6)


def passed(tiny, model, batched, stack, **options):
    with batched.applied(stack, **options):
        return tiny.loss(model(IDS, use_cache=False).logits)


@pytest.fixture
def setting(tiny):
    """A model with hooks, two lists of adapters, and the gradients of both without checkpoints."""
    model = tiny.model()
    lists = [[tiny.adapter(model, seed=seed) for seed in seeds] for seeds in ((1, 2), (3, 4))]
    batched = BatchedLora(model, lists[0][0].modules)
    expected = []
    for adapters in lists:
        stack = tiny.trainable(adapters)
        passed(tiny, model, batched, stack).backward()
        expected.append(tiny.gradients(stack))
    return model, batched, lists, expected


def switch_on(model, use_reentrant):
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    model.train()


@pytest.mark.parametrize("use_reentrant", [True, False])
class TestCheckpoints:
    def test_within_the_block(self, tiny, setting, use_reentrant):
        model, batched, (adapters, _), (expected, _) = setting
        switch_on(model, use_reentrant)
        stack = tiny.trainable(adapters)
        with batched.applied(stack, num_samples=[2, 2]):
            tiny.loss(model(IDS).logits).backward()
        assert_close(tiny.gradients(stack), expected)

    def test_after_the_block(self, tiny, setting, use_reentrant):
        model, batched, (adapters, _), (expected, _) = setting
        switch_on(model, use_reentrant)
        stack = tiny.trainable(adapters)
        passed(tiny, model, batched, stack).backward()
        assert_close(tiny.gradients(stack), expected)
        assert_close(model(IDS).logits, tiny.model()(IDS).logits)

    def test_within_the_block_of_other_adapters(self, tiny, setting, use_reentrant):
        model, batched, lists, expected = setting
        switch_on(model, use_reentrant)
        first, second = (tiny.trainable(adapters) for adapters in lists)
        first_loss = passed(tiny, model, batched, first)
        with batched.applied(second):
            second_loss = tiny.loss(model(IDS).logits)
            first_loss.backward()
            second_loss.backward()
        assert_close(tiny.gradients(first), expected[0])
        assert_close(tiny.gradients(second), expected[1])

    def test_one_backward_pass_of_two_adapters_is_refused(self, tiny, setting, use_reentrant):
        model, batched, lists, expected = setting
        switch_on(model, use_reentrant)
        first, second = (tiny.trainable(adapters) for adapters in lists)
        both = passed(tiny, model, batched, first) + passed(tiny, model, batched, second)
        with pytest.raises(LoragenInferError, match=r"different adapters; call backward\(\) for each"):
            both.backward()
        # and a pass that failed leaves nothing behind
        assert_close(model(IDS).logits, tiny.model()(IDS).logits)
        stack = tiny.trainable(lists[0])
        passed(tiny, model, batched, stack).backward()
        assert_close(tiny.gradients(stack), expected[0])

    def test_a_loss_that_does_not_come_from_the_output_is_refused(self, tiny, setting, use_reentrant):
        model, batched, (adapters, _), _ = setting
        switch_on(model, use_reentrant)
        states = []
        model.model.layers[1].register_forward_hook(lambda _, __, output: states.append(output))
        with batched.applied(tiny.trainable(adapters)):
            model(IDS)
        with pytest.raises(LoragenInferError, match="without coming from the model's output"):
            states[0].square().sum().backward()

    def test_dropout_is_drawn_once(self, tiny, setting, use_reentrant):
        model, batched, (adapters, _), (without, _) = setting
        found = []
        for is_checkpointed in (False, True):
            if is_checkpointed:
                switch_on(model, use_reentrant)
            torch.manual_seed(3)
            stack = tiny.trainable(adapters)
            passed(tiny, model, batched, stack, dropout=0.4).backward()
            found.append(tiny.gradients(stack))
        assert_close(*found)
        assert not torch.allclose(found[0][0], without[0])

    def test_several_passes_add_up(self, tiny, setting, use_reentrant):
        model, batched, (adapters, _), (expected, _) = setting
        switch_on(model, use_reentrant)
        stack = tiny.trainable(adapters)
        with batched.applied(stack):
            for _ in range(2):
                tiny.loss(model(IDS).logits).backward()
        assert_close(tiny.gradients(stack), [2 * gradient for gradient in expected])


def test_checkpoints_and_factors_that_a_network_made(tiny, setting):
    model, batched, (adapters, _), (expected, _) = setting
    switch_on(model, use_reentrant=False)
    leaves = tiny.trainable(adapters)
    scale = torch.ones((), requires_grad=True)
    made = AdapterStack(
        a_Kri={name: scale * factor for name, factor in leaves.a_Kri.items()},
        b_Kor={name: scale * factor for name, factor in leaves.b_Kor.items()},
        scaling_K=leaves.scaling_K,
    )
    passed(tiny, model, batched, made).backward()
    assert_close(tiny.gradients(leaves), expected)
    products = [
        (gradient * leaf).sum()
        for gradient, leaf in zip(expected, (*leaves.a_Kri.values(), *leaves.b_Kor.values()), strict=True)
    ]
    assert_close(scale.grad, sum(products), rtol=1e-4, atol=1e-3)


def test_the_whole_model_as_one_checkpoint(tiny, setting):
    model, batched, (adapters, _), (expected, _) = setting
    stack = tiny.trainable(adapters)
    with batched.applied(stack):
        loss = tiny.loss(checkpoint(lambda ids: model(ids).logits, IDS, use_reentrant=False))
    loss.backward()
    assert_close(tiny.gradients(stack), expected)


def test_layers_compiled_one_by_one_in_checkpoints(tiny, setting):
    """Compiled code computed again must not see that the block has ended."""
    model, batched, lists, expected = setting
    switch_on(model, use_reentrant=False)
    torch._dynamo.reset()
    for layer in model.model.layers:
        layer.compile(backend="eager")
    first, second = (tiny.trainable(adapters) for adapters in lists)
    first_loss = passed(tiny, model, batched, first)
    with batched.applied(second):
        second_loss = tiny.loss(model(IDS).logits)
        first_loss.backward()
    second_loss.backward()
    assert_close(tiny.gradients(first), expected[0])
    assert_close(tiny.gradients(second), expected[1])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("counts", [None, [1, 3]])
def test_compiled_whole_without_a_break_and_once(tiny, setting, backend, counts):
    model, batched, lists, _ = setting
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for adapters in (*lists, lists[0]):
        expected, stack = tiny.trainable(adapters), tiny.trainable(adapters)
        passed(tiny, model, batched, expected, num_samples=counts).backward()
        with batched.applied(stack, num_samples=counts):
            for _ in range(2):
                loss = tiny.loss(compiled(IDS, use_cache=False).logits)
        loss.backward()
        assert_close(tiny.gradients(stack), tiny.gradients(expected), rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1
    assert_close(compiled(IDS, use_cache=False).logits, tiny.model()(IDS).logits)


def test_compiled_for_any_length(tiny, setting):
    """The second length makes the compiler leave it open, and no other length is a new one."""
    model, batched, (adapters, _), _ = setting
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with batched.applied(AdapterStack.of(adapters), num_samples=[1, 3]), torch.no_grad():
        counts = []
        for length in (6, 5, 4, 3):
            ids = IDS[:, :length]
            logits = compiled(ids, use_cache=False).logits
            assert_close(logits, model(ids, use_cache=False).logits, rtol=1e-4, atol=1e-4)
            counts.append(counter.frame_count)
    assert counts[0] == 1
    assert counts[1] == counts[3]


def test_a_model_compiled_before_is_noticed(tiny):
    """torch.compile does not look for new hooks, so the adapters would be left out in silence."""
    model = tiny.model().requires_grad_(False)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    compiled(IDS)
    adapters = [tiny.adapter(model)]
    batched = BatchedLora(model, adapters[0].modules)
    with (
        pytest.raises(LoragenInferError, match=r"No forward pass reached .* attach before torch.compile"),
        batched.applied(AdapterStack.of(adapters)),
    ):
        compiled(IDS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("counts", [[2, 2], [1, 3]])
def test_a_model_on_another_device_than_the_factors(tiny, setting, counts):
    model, batched, (adapters, _), _ = setting
    expected = tiny.trainable(adapters)
    passed(tiny, model, batched, expected, num_samples=counts).backward()
    stack = tiny.trainable(adapters)
    model.to("cuda")
    with batched.applied(stack, num_samples=counts):
        loss = tiny.loss(model(IDS.cuda(), use_cache=False).logits.cpu())
    loss.backward()
    assert_close(tiny.gradients(stack), tiny.gradients(expected), rtol=1e-3, atol=1e-3)
