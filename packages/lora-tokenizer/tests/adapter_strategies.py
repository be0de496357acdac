"""Adapters for property tests."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from lora_tokenizer import AdapterConfig, LoraAdapter

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@st.composite
def adapters(draw: st.DrawFn, unit: int = 1) -> LoraAdapter:
    """Any adapter: uneven layers, stacks, mixed ranks and dtypes, embeddings, DoRA, biases, any finite bits.

    Inputs and outputs are multiples of `unit`.
    """
    r = draw(st.integers(1, 5))
    use_dora, lora_bias = draw(st.booleans()), draw(st.booleans())
    stacks = draw(
        st.lists(st.sampled_from(["model.layers", "encoder.block", "decoder.block"]), max_size=2, unique=True)
    )
    modules = [
        f"{stack}.{layer}.{leaf}"
        for stack in stacks
        for layer in draw(st.lists(st.integers(0, 12), min_size=1, max_size=3, unique=True))
        for leaf in draw(
            st.lists(st.sampled_from(["attn.q", "attn.v", "mlp.0.up"]), min_size=1, max_size=3, unique=True)
        )
    ]
    modules += draw(st.lists(st.sampled_from(["lm_head", "embed"]), min_size=0 if modules else 1, unique=True))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    dtypes = draw(st.sampled_from([DTYPES, DTYPES[:1], DTYPES[2:3]]))
    rank_pattern, tensors = {}, {}
    for module in modules:
        rank = draw(st.sampled_from([r, r, 2 * r]))
        if rank != r:
            rank_pattern[f"^{module}"] = rank
        num_in, num_out = unit * draw(st.integers(1, 9)), unit * draw(st.integers(1, 9))
        shapes: dict[str, tuple[int, ...]] = {"lora_A.weight": (rank, num_in), "lora_B.weight": (num_out, rank)}
        if module == "embed":
            shapes = {"lora_embedding_A": (rank, num_in), "lora_embedding_B": (num_out, rank)}
        elif lora_bias:
            shapes["lora_B.bias"] = (num_out,)
        if use_dora:
            shapes["lora_magnitude_vector"] = (num_out,)
        for part, shape in shapes.items():
            dtype = draw(st.sampled_from(dtypes))
            raw = torch.randint(0, 256, (math.prod(shape) * dtype.itemsize,), generator=generator, dtype=torch.uint8)
            tensor = raw.view(dtype).view(shape).clone()
            tensor[~torch.isfinite(tensor)] = -0.0
            tensors[f"base_model.model.{module}.{part}"] = tensor
    alphas = st.sampled_from([1, 16, 0.5, -3])
    patterns = st.sampled_from([*(f"^{module}" for module in modules), "attn.q", r".*\.0\..*", "mlp", "nowhere"])
    numbers = [int(part) for module in modules for part in module.split(".") if part.isdigit()]
    layers = draw(st.none() | st.lists(st.sampled_from(numbers or [0]), min_size=1, unique=True))
    config = AdapterConfig(
        r=r,
        lora_alpha=draw(alphas),
        alpha_pattern=draw(st.dictionaries(patterns, alphas, max_size=3)),
        layers_to_transform=None if layers is None else tuple(layers),
        layers_pattern=None if layers is None else draw(st.none() | st.just(("layers", "block"))),
        fan_in_fan_out=draw(st.booleans()),
        target_modules=tuple(modules),
        use_dora=use_dora,
        lora_bias=lora_bias,
        use_rslora=draw(st.booleans()),
        rank_pattern=rank_pattern,
        base_model_name_or_path=draw(st.sampled_from([None, "x/y"])),
    )
    return LoraAdapter(config=config, tensors=tensors)
