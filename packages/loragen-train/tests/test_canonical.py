"""Adapters of unrelated initialisations: brought to one form from zoo.json to the bundle and what is made with it."""

import json

import pytest
import torch
from lora_tokenizer import LoraAdapter, TokenLayout, write_adapter
from loragen_infer import GeneratorBundle
from loragen_infer.bundle import find_bundle
from loragen_infer.bundle.info import describe_bundle
from loragen_infer.evaluation.task_means import read_task_means
from loragen_infer.generation.writer import values_of
from loragen_train.configs.fit import DataConfig, ModelConfig, TaskConfig
from loragen_train.zoo.tokens import Zoo, read_zoo

NAMES = ("sums", "spelling", "capitals")


def mixed(adapter: LoraAdapter, seed: int) -> LoraAdapter:
    """The same weight changes from other factors: B M and M^-1 A."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in adapter.modules:
        a_ri, b_or = adapter.factors(module)
        mix_rr = torch.linalg.qr(torch.randn(len(a_ri), len(a_ri), generator=random)).Q * 2.0
        stem = f"base_model.model.{module}.lora_"
        tensors |= {f"{stem}A.weight": torch.linalg.solve(mix_rr, a_ri), f"{stem}B.weight": b_or @ mix_rr}
    return LoraAdapter(config=adapter.config, tensors=tensors)


@pytest.fixture
def parts(tmp_path, make, questions):
    """The first two tasks have one weight change in different factors."""
    adapters = [make.adapter(seed=0), mixed(make.adapter(seed=0), seed=1), make.adapter(seed=2)]
    for name, adapter in zip(NAMES, adapters, strict=True):
        write_adapter(adapter, tmp_path / "adapters" / name)
        make.samples(tmp_path / "prompts" / f"{name}.jsonl", questions[name])
    return tmp_path


def zoo_of(parts, canonical: str) -> Zoo:
    tasks = [TaskConfig(name=name, checkpoint_dir=str(parts / "adapters" / name)) for name in NAMES]
    data = DataConfig(tasks=tasks, canonical=canonical)
    return read_zoo(data, ModelConfig(output_dim=16), NAMES, parts / "cache")


def test_factors_of_one_product_have_the_same_tokens_and_a_cache_of_their_own(parts):
    plain, canonical = zoo_of(parts, "none"), zoo_of(parts, "svd")
    assert (plain.layout.canonical, canonical.layout.canonical) == (None, "svd")
    assert plain.tokens.file != canonical.tokens.file
    assert not torch.allclose(plain.tokens[0], plain.tokens[1], atol=0.1)
    torch.testing.assert_close(canonical.tokens[0], canonical.tokens[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(canonical.tokens[0], canonical.tokens[2], atol=0.1)
    assert zoo_of(parts, "auto").layout.canonical is None
    module = "model.layers.0.self_attn.q_proj"
    decoded, adapter = (zoo.layout.decode(zoo.tokens[1]) for zoo in (canonical, plain))
    torch.testing.assert_close(decoded.delta_weight(module), adapter.delta_weight(module), rtol=1e-4, atol=1e-4)


def test_zoo_json_says_so_and_the_bundle_keeps_it(parts, make, capsys):
    words = ["--adapters", str(parts / "adapters"), "--prompts", str(parts / "prompts"), "--base-model", "lab/lm"]
    assert make.cli("import", *words, "--output-dir", str(parts / "zoo"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["canonical"] == "svd"
    small = ["--model.hidden-dim=16", "--model.output-dim=16", "--model.num-hyperconv-blocks=1"]
    short = ["--training.max-epochs=1", "--training.accelerator=cpu", "--logging.tensorboard=false"]
    fit = ["fit", "--data.zoo", str(parts / "zoo"), *small, *short, f"--data.cache-dir={parts / 'cache'}"]
    assert make.cli(*fit, f"--output-dir={parts / 'auto'}") == 0
    assert make.cli(*fit, f"--output-dir={parts / 'none'}", "--data.canonical=none") == 0
    (auto,), (none,) = (list((parts / name).iterdir()) for name in ("auto", "none"))
    assert GeneratorBundle.load(find_bundle(auto)).layout.canonical == "svd"
    assert describe_bundle(auto)["layout"]["canonical"] == "svd"
    assert describe_bundle(none)["layout"]["canonical"] is None
    means = read_task_means(find_bundle(auto))
    first, second = (means.token_means[means.names.index(name)] for name in NAMES[:2])
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_the_tokens_of_a_generated_adapter_are_written_as_they_are(make):
    layout = TokenLayout.from_adapter(make.adapter(seed=0), token_dim=16, canonical="svd")
    tokens_NW = torch.randn(layout.num_tokens, 16) * layout.mask()
    assert torch.equal(values_of(layout.decode(tokens_NW), "tokens", layout)["tokens"], tokens_NW)
