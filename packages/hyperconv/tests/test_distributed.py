"""Training on two processes (gloo, CPU, DistributedDataParallel) is training on one with the same batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hyperconv import GeneratorConfig

RANK = Path(__file__).parent / "rank.py"
CONFIG = {"condition_dim": 6, "hidden_dim": 16, "grid": (4, 3), "output_dim": 16, "num_basis": 3}
VARIANTS = [
    ({}, True),
    ({"block": "dual", "pooling": "attention", "activation_checkpointing": True, "output_dim": 10}, False),
]


def run(folder, num_ranks):
    """Start the ranks side by side and return the state dict that each ended with."""
    ranks = range(num_ranks)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, str(RANK), str(rank), str(num_ranks), str(folder)] for rank in ranks]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        for process in started:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"rank_{rank}_of_{num_ranks}.pt", weights_only=True) for rank in ranks]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of torch has no gloo")
@pytest.mark.parametrize(("options", "compiled"), VARIANTS, ids=str)
def test_two_ranks_train_as_one_process_with_the_whole_batch(tmp_path, options, compiled):
    torch.manual_seed(0)
    mask_SBP = torch.rand(4, 4, 5) < 0.6  # the ranks hold different numbers of prompts
    mask_SBP[..., 0] = True
    data = {
        "config": GeneratorConfig(**{**CONFIG, **options}).to_dict(),
        "compile": compiled,
        # Off the origin and different from rank to rank, so that statistics of one rank are not those of the batch.
        "condition": torch.randn(4, 4, 5, 6) + torch.tensor([0.5, 1.0, 3.0, 5.0]).view(4, 1, 1),
        "mask": mask_SBP,
        "target": torch.randn(4, 4, 12, options.get("output_dim", 16)),
    }
    torch.save(data, tmp_path / "data.pt")
    first, second = run(tmp_path, 2)
    (alone,) = run(tmp_path, 1)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-6)
    seen_ND = data["condition"][mask_SBP]
    torch.testing.assert_close(first["condition_encoder.centering.mean"], seen_ND.mean(0))
    assert first["condition_encoder.centering.count"] == mask_SBP.sum()
