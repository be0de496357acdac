"""Weights saved by version 0.1 load into this version, under the same names, and give the same answer.

A change that fails here breaks every saved model. Written by `python tests/test_golden.py`, once per format version.
"""

from pathlib import Path

import pytest
import torch
from hyperconv import GeneratorConfig, HyperConvDecoder, HyperConvGenerator

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"condition_dim": 5, "hidden_dim": 6, "grid": [3, 4], "num_basis": 2}
GENERATORS = {
    "generator_sequential": {**SMALL, "output_dim": 6, "expander": "basis"},
    "generator_dual": {**SMALL, "output_dim": 7, "expander": "basis", "block": "dual", "pooling": "attention"},
    "generator_broadcast": {**SMALL, "output_dim": 6, "expander": "broadcast", "num_hyperconv_blocks": 1},
    "generator_linear": {**SMALL, "output_dim": 7, "expander": "linear", "num_hyperconv_blocks": 1},
}
# Written before centering was that of the prompts given: they held the number of prompts seen, too.
RUNNING = ["generator_sequential", "generator_dual", "generator_broadcast"]
SHAPES = [(3, 4, 5), (3, 4, 5), (4, 3, 6)]


def everything_random(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*module.parameters(), *(b for b in module.buffers() if b.ndim)):
            tensor.copy_(torch.randn_like(tensor).abs() * 0.5)


def write() -> None:
    """Write the files anew; only for a new format version, beside the old ones."""
    torch.manual_seed(0)
    for name, options in GENERATORS.items():
        generator = HyperConvGenerator(GeneratorConfig.from_dict(options)).eval()
        everything_random(generator)
        condition = torch.randn(2, 3, 5)
        saved = {"condition": condition, "tokens": generator(condition).detach(), "config": generator.config.to_dict()}
        torch.save({**saved, "state_dict": generator.state_dict()}, GOLDEN / f"{name}_0.1.pt")
    decoder = HyperConvDecoder(SHAPES, 3, "dual")
    everything_random(decoder)
    x = torch.randn(2, *SHAPES[0])
    torch.save({"x": x, "y": decoder(x).detach(), "state_dict": decoder.state_dict()}, GOLDEN / "decoder_dual_0.1.pt")


@pytest.mark.parametrize("name", GENERATORS)
def test_a_saved_generator_still_answers_the_same(name):
    saved = torch.load(GOLDEN / f"{name}_0.1.pt", weights_only=True)
    generator = HyperConvGenerator(GeneratorConfig.from_dict(saved["config"])).eval()
    count = "condition_encoder.centering.count"
    shapes = {name: tensor.shape for name, tensor in saved["state_dict"].items() if name != count}
    assert {name: tensor.shape for name, tensor in generator.state_dict().items()} == shapes
    assert (count in saved["state_dict"]) == (saved["config"]["centering"] == "running") == (name in RUNNING)
    generator.load_state_dict(saved["state_dict"])
    torch.testing.assert_close(generator(saved["condition"]), saved["tokens"], rtol=1e-4, atol=1e-5)


def test_a_saved_dual_decoder_still_answers_the_same():
    saved = torch.load(GOLDEN / "decoder_dual_0.1.pt", weights_only=True)
    decoder = HyperConvDecoder(SHAPES, 3, "dual")
    decoder.load_state_dict(saved["state_dict"])
    torch.testing.assert_close(decoder(saved["x"]), saved["y"], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    write()
