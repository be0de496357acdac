"""The layers against their plain twins, against written-out sums, and against the published decoder."""

import itertools

import pytest
import reference
import torch
from hyperconv import (
    DualHyperConvBlock,
    HyperConv,
    HyperConvDecoder,
    HyperConvError,
    SequentialHyperConvBlock,
    decoder_from_published,
    from_published,
    published_shapes,
    to_published,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck

SIZES = st.integers(3, 7)
SHAPES = st.tuples(SIZES, SIZES, SIZES)
BLOCKS = [SequentialHyperConvBlock, DualHyperConvBlock]


def written_out(conv: HyperConv, x_BLHW: torch.Tensor) -> torch.Tensor:
    """The sum in the definition, term by term: one shift of the grid per entry of the kernel."""
    reach = conv.kernel_size // 2
    slides = {"W": (1, 2), "H": (1, 3), "L": (2, 3)}[conv.axis]
    equation = {"W": "blhw,vw->blhv", "H": "blhw,gh->blgw", "L": "blhw,ml->bmhw"}[conv.axis]
    total = 0
    for i in range(conv.kernel_size):
        for j in range(conv.kernel_size):
            moved = x_BLHW
            for axis, by in zip(slides, (reach - i, reach - j), strict=True):
                moved = torch.roll(moved, by, axis)
                edge = moved.narrow(axis, 0, by) if by > 0 else moved.narrow(axis, moved.shape[axis] + by, -by)
                edge.zero_()
            total = total + torch.einsum(equation, moved, conv.weight[:, :, i, j])
    if conv.bias is not None:
        total = total + conv.bias.view([-1 if axis == conv.axis else 1 for axis in "LHW"])
    return total


@settings(max_examples=25, deadline=None)
@given(axis=st.sampled_from("LHW"), shape=SHAPES, out=SIZES, kernel=st.sampled_from([1, 3]), bias=st.booleans())
def test_a_hyperconv_is_the_sum_in_its_definition(axis, shape, out, kernel, bias):
    conv = HyperConv(axis, shape["LHW".index(axis)], out, kernel, bias=bias, dtype=torch.float64)
    x_BLHW = torch.randn(2, *shape, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(conv(x_BLHW), written_out(conv, x_BLHW))
        torch.testing.assert_close(reference.hyperconv(conv, x_BLHW), written_out(conv, x_BLHW))


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(BLOCKS), before=SHAPES, after=st.none() | SHAPES, kernel=st.sampled_from([1, 3]))
def test_a_block_equals_its_plain_twin_in_value_and_gradient(kind, before, after, kernel):
    block = kind(before, after or before, kernel)
    randomize(block)
    x_BLHW = torch.randn(2, *before)
    scale_BW, shift_BW = torch.randn(2, 2, before[-1]).unbind()
    twin = reference.sequential_block if kind is SequentialHyperConvBlock else reference.dual_block
    results = []
    for function in (block, lambda *args: twin(block, *args)):
        inputs = [tensor.clone().requires_grad_() for tensor in (x_BLHW, scale_BW, shift_BW)]
        y = function(*inputs)
        results.append([y, *torch.autograd.grad(y.sin().sum(), [*inputs, *block.parameters()])])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("after", [(3, 4, 5), (4, 3, 6)])
def test_gradients_are_the_derivatives(kind, after):
    torch.manual_seed(0)
    block = kind((3, 4, 5), after, 3, dtype=torch.float64)
    randomize(block)
    names = [name for name, _ in block.named_parameters()]

    def function(x, scale, shift, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (x, scale, shift))

    x = torch.randn(1, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    scale, shift = (torch.randn(1, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert gradcheck(function, (x, scale, shift, *block.parameters()), fast_mode=True)


def copied_numbers(function) -> int:
    """How many numbers the call copies, also inside the convolution of torch, where no dispatch mode looks."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        function()
    copies = [event.input_shapes[0] for event in profile.events() if event.name == "aten::copy_"]
    return sum(torch.Size(shape).numel() for shape in copies)


@pytest.mark.parametrize("kernel", [1, 3])
def test_mixing_w_and_l_copies_nothing_and_mixing_h_the_grid_once(kernel):
    x_BLHW = torch.randn(2, 8, 6, 16)
    for conv in (HyperConv("W", 16, 12, kernel), HyperConv("L", 8, 10, kernel)):
        assert copied_numbers(lambda conv=conv: conv(x_BLHW)) == 0
        assert conv(x_BLHW).is_contiguous()
    conv_h = HyperConv("H", 6, 5, kernel)
    assert copied_numbers(lambda: conv_h(x_BLHW)) == x_BLHW.numel()
    assert copied_numbers(lambda: reference.hyperconv(conv_h, x_BLHW)) > x_BLHW.numel()


def test_a_long_kernel_is_never_copied():
    conv_w, x_BLHW = HyperConv("W", 16, 12, 5), torch.randn(2, 8, 6, 16)
    assert copied_numbers(lambda: conv_w(x_BLHW)) == x_BLHW.numel() < conv_w.weight.numel()


class PublishedBlock(nn.Module):
    """The published block, with the axes in its order: its W convolutions slide over (H, L)."""

    def __init__(self, before, after, kernel):
        super().__init__()
        (l_in, h_in, w_in), (l_out, h_out, w_out) = before, after
        one = nn.Module()
        one.norm = nn.LayerNorm([h_in, w_in])
        one.conv1w = nn.Conv2d(w_in, w_out, kernel, padding="same", bias=False)
        one.conv1h = nn.Conv2d(h_in, h_out, kernel, padding="same", bias=False)
        one.conv2h = nn.Conv2d(h_in, h_out, kernel, padding="same", bias=False)
        one.conv2w = nn.Conv2d(w_in, w_out, kernel, padding="same", bias=False)
        one.bias = nn.Parameter(torch.randn(h_out, w_out))
        self.linear1, self.linear2 = one, nn.Conv2d(l_in, l_out, kernel, padding="same")

    def forward(self, x):
        one = self.linear1
        u = one.norm(x)
        a = one.conv1h(one.conv1w(u.permute(0, 3, 2, 1)).permute(0, 2, 3, 1)).transpose(1, 2)
        b = torch.tanh(one.conv2w(one.conv2h(u.transpose(1, 2)).permute(0, 3, 1, 2)).permute(0, 3, 2, 1))
        y = self.linear2((a + b + one.bias) / 3)
        return x + y if x.shape == y.shape else y


class PublishedDecoder(nn.Module):
    """A chain of published blocks under the published names."""

    def __init__(self, shapes, kernel):
        super().__init__()
        self.decoder = nn.Module()
        pairs = itertools.pairwise(shapes)
        self.decoder.module_list = nn.ModuleList(PublishedBlock(before, after, kernel) for before, after in pairs)

    def forward(self, x):
        for block in self.decoder.module_list:
            x = block(x)
        return x


@settings(max_examples=10, deadline=None)
@given(shapes=st.lists(SHAPES, min_size=2, max_size=3), kernel=st.sampled_from([1, 3, 5]))
def test_published_weights_give_the_published_answer_and_come_back_bit_for_bit(shapes, kernel):
    theirs = PublishedDecoder(shapes, kernel)
    randomize(theirs)
    ours = decoder_from_published(theirs.state_dict())
    x_BLHW = torch.randn(2, *shapes[0])
    expected = theirs(x_BLHW)
    torch.testing.assert_close(ours(x_BLHW), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reference.decoder(ours, x_BLHW), expected, rtol=1e-4, atol=1e-5)
    assert ours.shapes == published_shapes(theirs.state_dict()) == [tuple(shape) for shape in shapes]
    back = to_published(ours.state_dict())
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in theirs.state_dict().items())
    assert all(p.requires_grad and not p.is_meta for p in ours.parameters())


def test_state_dicts_that_are_not_the_published_ones_are_refused_by_name():
    published = PublishedDecoder([(4, 3, 5), (4, 3, 5), (2, 3, 5)], 3).state_dict()
    key = "decoder.module_list.1.linear1.conv1w.weight"
    with pytest.raises(HyperConvError, match="conv_w1"):
        from_published({name: tensor for name, tensor in published.items() if name != key})
    with pytest.raises(HyperConvError, match="criterion_weight"):
        from_published({**published, "criterion_weight": torch.zeros(1)})
    with pytest.raises(HyperConvError, match=r"conv_w1.weight .* has shape \[5, 7, 3, 3\], expected \[5, 5, 3, 3\]"):
        decoder_from_published({**published, key: torch.zeros(5, 7, 3, 3)})
    with pytest.raises(HyperConvError, match=r"conv1w.weight of the state dict has shape \[5, 7\], expected 4"):
        decoder_from_published({**published, key: torch.zeros(5, 7)})
    with pytest.raises(HyperConvError, match=r"block 0 .* a bias of \[7\] .* expected 2, 2 and 4 axes"):
        published_shapes({**published, "decoder.module_list.0.linear1.bias": torch.zeros(7)})
    with pytest.raises(HyperConvError, match="block 1 of the state dict takes"):
        published_shapes({**published, "decoder.module_list.1.linear1.norm.weight": torch.zeros(9, 5)})
    with pytest.raises(HyperConvError, match="expected all"):
        from_published({})


@pytest.mark.parametrize("block", ["sequential", "dual"])
def test_activation_checkpointing_changes_nothing_but_what_is_kept(block):
    torch.manual_seed(0)
    shapes = [(4, 3, 6), (4, 3, 6), (5, 4, 6)]
    plain = HyperConvDecoder(shapes, 3, block)
    saving = HyperConvDecoder(shapes, 3, block, activation_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    x_BLHW, kept = torch.randn(2, 4, 3, 6), {}
    for name, decoder in (("plain", plain), ("saving", saving)):
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = decoder(x_BLHW)
        kept[name] = (y, sum(sizes), torch.autograd.grad(y.square().sum(), list(decoder.parameters())))
    assert torch.equal(kept["plain"][0], kept["saving"][0])
    assert all(torch.equal(a, b) for a, b in zip(kept["plain"][2], kept["saving"][2], strict=True))
    assert kept["saving"][1] < kept["plain"][1] / 2


def randomize(module: nn.Module) -> None:
    """Leave no parameter at a value, such as the 1 of a norm, that would hide a mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
