"""The generator under everything that runs it: compile, export, meta tensors, half precision, determinism."""

import pytest
import torch
from hyperconv import GeneratorConfig, HyperConvDecoder, HyperConvGenerator

CONFIG = GeneratorConfig(condition_dim=6, hidden_dim=16, grid=(4, 3), output_dim=16, num_basis=3)
VARIANTS = [
    {},
    {"num_hyperconv_blocks": 0},
    {"expander": "basis", "block": "dual", "pooling": "attention", "activation_checkpointing": True},
]


def build(**options):
    torch.manual_seed(0)
    generator = HyperConvGenerator(GeneratorConfig(**{**CONFIG.to_dict(), **options}))
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return generator


def compiles(backend) -> bool:
    """Whether the backend turns a trivial function into something that runs: inductor needs a C++ compiler for that."""
    try:
        return bool(torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(2)).sum() == 2)
    except torch._dynamo.exc.BackendCompilerFailed:
        return False


@pytest.mark.parametrize(
    ("backend", "options", "training"),
    [
        *(("aot_eager", options, training) for options in VARIANTS for training in (True, False)),
        ("inductor", VARIANTS[0], True),
    ],
)
def test_compiles_into_one_graph(backend, options, training):
    if not compiles(backend):
        pytest.skip(f"the backend {backend} has no compiler here")
    torch.compiler.reset()
    generator, twin = build(**options).train(training), build(**options).train(training)
    compiled = torch.compile(generator, fullgraph=True, backend=backend)
    condition_BPD = torch.randn(2, 5, 6)
    mask_BP = torch.tensor([[True] * 5, [True, False, True, False, False]])
    fast, plain = compiled(condition_BPD, mask_BP), twin(condition_BPD, mask_BP)
    torch.testing.assert_close(fast, plain)
    if training:
        fast.square().sum().backward()
        plain.square().sum().backward()
        # A fused graph adds in another order: round-off is that of the gradient as a whole, since some entries cancel.
        largest = max(parameter.grad.abs().max() for parameter in twin.parameters())
        for (name, parameter), other in zip(generator.named_parameters(), twin.parameters(), strict=True):
            assert (parameter.grad - other.grad).abs().max() < 1e-5 * largest, name


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_exports_with_any_number_of_tasks_and_prompts(options, tmp_path):
    generator = build(**options).eval()
    batch, prompts = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("prompts", min=1, max=64)
    mask_BP = torch.ones(2, 5, dtype=torch.bool)
    shapes = {"condition": {0: batch, 1: prompts}, "mask": {0: batch, 1: prompts}}
    program = torch.export.export(generator, (torch.randn(2, 5, 6), mask_BP), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "generator.pt2")
    loaded = torch.export.load(tmp_path / "generator.pt2").module()
    for B, P in ((1, 1), (3, 7)):
        condition_BPD, mask_BP = torch.randn(B, P, 6), torch.ones(B, P, dtype=torch.bool)
        mask_BP[:, 1:2] = False
        torch.testing.assert_close(loaded(condition_BPD, mask_BP), generator(condition_BPD, mask_BP))


def test_a_meta_generator_holds_no_memory_and_takes_a_state_dict():
    generator = build().eval()
    empty = HyperConvGenerator(CONFIG, device="meta").eval()
    with torch.device("meta"):
        assert all(p.is_meta for p in HyperConvGenerator(CONFIG).state_dict().values())
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    assert empty(torch.empty(2, 5, 6, device="meta")).shape == (2, 12, 16)
    empty.load_state_dict(generator.state_dict(), assign=True)
    condition_BPD = torch.randn(2, 5, 6)
    assert torch.equal(empty(condition_BPD), generator(condition_BPD))


def train(generator, steps, dtype=None):
    config = generator.config
    condition_SPD = torch.randn(4, 3, config.condition_dim)
    target_SNW = torch.randn(4, config.max_seq_len, config.output_dim)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=3e-3, eps=1e-6, fused=True)
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            tokens_SNW = generator(condition_SPD)
            error = tokens_SNW.float() - target_SNW
        loss = error.square().mean() + 0.1 * error.abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


@pytest.mark.parametrize("block", ["sequential", "dual"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hundreds_of_steps_of_autocast_stay_finite_and_learn(block, dtype):
    torch.manual_seed(0)
    # All default options, three blocks of 48 tokens of 64 values, from the default start.
    config = GeneratorConfig(condition_dim=384, hidden_dim=64, grid=(6, 8), output_dim=64, block=block)
    losses = train(HyperConvGenerator(config), 300, dtype)
    assert losses.isfinite().all()
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_answer_as_float32_does_within_their_precision(dtype):
    generator, condition_BPD = build().eval(), torch.randn(2, 5, 6)
    expected = generator(condition_BPD)
    tokens = generator.to(dtype)(condition_BPD)
    assert tokens.dtype == dtype
    error = (tokens.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 10 * torch.finfo(dtype).eps


@pytest.mark.parametrize("options", [*VARIANTS, {"output_dim": 10, "expander": "broadcast"}], ids=str)
@pytest.mark.parametrize("condition_dtype", [torch.float32, torch.bfloat16])
def test_a_generator_wholly_in_bfloat16_trains(options, condition_dtype):
    generator = build(**options)
    condition_BPD = torch.randn(4, 3, 6) * 0.01 + 3  # embeddings of which bfloat16 alone would leave two digits
    generator.center_on(condition_BPD.flatten(0, 1))
    generator = generator.bfloat16().train()
    target_BNW = torch.randn(4, 12, options.get("output_dim", 16))
    mask_BP = torch.tensor([[True, True, False]] * 4)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        tokens_BNW = generator(condition_BPD.to(condition_dtype), mask_BP)
        assert tokens_BNW.dtype == torch.bfloat16
        loss = (tokens_BNW.float() - target_BNW).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_a_batch_of_nan_in_a_compiled_step_leaves_nothing_behind():
    torch.compiler.reset()
    generator, condition_BPD = build().train(), torch.randn(2, 5, 6)
    generator.center_on(condition_BPD.flatten(0, 1))
    compiled = torch.compile(generator, fullgraph=True, backend="aot_eager")
    before, state = compiled(condition_BPD), {k: v.clone() for k, v in generator.state_dict().items()}
    assert compiled(torch.full((2, 5, 6), torch.nan)).isnan().all()
    assert all(torch.equal(tensor, state[name]) for name, tensor in generator.state_dict().items())
    assert torch.equal(compiled(condition_BPD), before)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_same_seed_gives_the_same_bits(options):
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(2):
            generator = build(**options)
            runs.append((train(generator, 5), generator.state_dict()))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(tensor, runs[1][1][name]) for name, tensor in runs[0][1].items())


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_two_steps_and_two_after_a_restart_are_four_steps_to_the_bit(options, tmp_path):
    torch.manual_seed(0)
    condition_SBPD, target_SBNW = torch.randn(4, 2, 3, 6) + 1, torch.randn(4, 2, 12, 16)

    def steps(generator, optimizer, which):
        for s in which:
            optimizer.zero_grad()
            (generator(condition_SBPD[s]) - target_SBNW[s]).square().mean().backward()
            optimizer.step()

    def fresh(seed_of_weights):
        torch.manual_seed(seed_of_weights)
        generator = HyperConvGenerator(GeneratorConfig(**{**CONFIG.to_dict(), **options}))
        return generator, torch.optim.AdamW(generator.parameters(), lr=1e-2)

    through, optimizer = fresh(0)
    steps(through, optimizer, range(4))
    first, optimizer = fresh(0)
    steps(first, optimizer, range(2))
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    second, optimizer = fresh(1)
    second.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    steps(second, optimizer, range(2, 4))
    assert second.state_dict().keys() == through.state_dict().keys()
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in through.state_dict().items())
    assert any(not torch.equal(tensor, first.state_dict()[name]) for name, tensor in through.state_dict().items())


def test_the_decoder_runs_under_autocast_and_channels_last_with_the_same_answer():
    torch.manual_seed(0)
    decoder = HyperConvDecoder([(4, 3, 16), (4, 3, 16), (5, 3, 8)], 3)
    x_BLHW = torch.randn(2, 4, 3, 16)
    expected = decoder(x_BLHW)
    torch.testing.assert_close(decoder(x_BLHW.contiguous(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(decoder.to(memory_format=torch.channels_last)(x_BLHW), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(decoder(x_BLHW).float(), expected, rtol=0.05, atol=0.05)
