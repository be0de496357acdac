"""One process of a training run over ranks; test_distributed.py starts it: `python rank.py RANK NUM_RANKS FOLDER`.

It reads data.pt in the folder, trains on its share of every batch as DistributedDataParallel does, and writes what it
ends with to rank_{RANK}_of_{NUM_RANKS}.pt.
"""

import sys
from pathlib import Path

import torch
from hyperconv import GeneratorConfig, HyperConvGenerator
from torch import distributed
from torch.nn.parallel import DistributedDataParallel


def main(rank: int, num_ranks: int, folder: Path) -> None:
    """Train and write."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if num_ranks > 1:
        store = distributed.FileStore(str(folder / "store"), num_ranks)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks)
    data = torch.load(folder / "data.pt", weights_only=True)
    generator = HyperConvGenerator(GeneratorConfig.from_dict(data["config"]))
    model = torch.compile(generator, backend="aot_eager", fullgraph=True) if data["compile"] else generator
    if num_ranks > 1:
        model = DistributedDataParallel(model)
    # Plain descent: Adam would blow rounding up where a gradient is near zero, and hide a wrong scale elsewhere.
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.05)
    for step in range(len(data["condition"])):
        condition_BPD, mask_BP, target_BNW = (
            data[key][step].chunk(num_ranks)[rank] for key in ("condition", "mask", "target")
        )
        optimizer.zero_grad()
        (model(condition_BPD, mask_BP) - target_BNW).square().mean().backward()
        optimizer.step()
    torch.save(generator.state_dict(), folder / f"rank_{rank}_of_{num_ranks}.pt")
    if num_ranks > 1:
        # The wrapper holds the group: what is left of it when the interpreter ends has aborted the process, rarely.
        del model
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
