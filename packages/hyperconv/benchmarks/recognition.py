"""How surely a generator recognises the tasks that it remembers, and how rarely it takes a task never seen for one.

A zoo is a folder `<zoo>/adapters/<task>/` with `<zoo>/train/<task>.jsonl` and `<zoo>/test/<task>.jsonl` (lines with a
"prompt"). It needs sentence-transformers.

    python packages/hyperconv/benchmarks/recognition.py ZOO --encoder all-MiniLM-L6-v2

For several numbers of test prompts it prints how far a task is recognised by them (mean and lowest over the tasks), how
far it is taken for another one when it is left out (mean and highest; in a zoo with variants of a task for a variant,
mostly), and how far other tasks, those that are named and those without adapters, are taken for one of them (highest).
"""

import argparse
import json
from pathlib import Path

import torch
from hyperconv.memory import TaskMemory
from torch import Tensor

NUMBERS = (1, 2, 4, 8)


def read_prompts(file: Path) -> list[str]:
    """Prompts of a JSONL file."""
    return [json.loads(line)["prompt"] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def remember(tasks: list[Tensor]) -> TaskMemory:
    """A memory of these prompts [P, D] of each task."""
    memory = TaskMemory(len(tasks), tasks[0].shape[1])
    memory.fit(tasks)
    return memory


def recognised(memory: TaskMemory, tasks: list[Tensor], num_prompts: int) -> Tensor:
    """How far the first so many prompts of each are recognised as those of each task, [B, T]."""
    means_BD = torch.stack([prompts_PD[:num_prompts].mean(0) for prompts_PD in tasks])
    known_BT: Tensor = memory(means_BD, torch.full((len(tasks),), num_prompts))
    return known_BT


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--others", nargs="*", default=[], help="tasks that are not remembered, such as held-out ones")
    parser.add_argument("--encoder", required=True, help="folder or hub name of a sentence-transformers model")
    options = parser.parse_args()
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(options.encoder, device="cpu")

    def embed(file: Path) -> Tensor:
        return torch.as_tensor(encoder.encode(read_prompts(file), batch_size=64, show_progress_bar=False))

    names = sorted({folder.name for folder in (options.zoo / "adapters").iterdir()} - set(options.others))
    others = sorted({file.stem for file in (options.zoo / "test").glob("*.jsonl")} - set(names))
    train = [embed(options.zoo / "train" / f"{name}.jsonl") for name in names]
    test = [embed(options.zoo / "test" / f"{name}.jsonl") for name in names]
    other = [embed(options.zoo / "test" / f"{name}.jsonl") for name in others]
    memory = remember(train)
    without = [remember([*train[:task], *train[task + 1 :]]) for task in range(len(train))]
    print(f"{len(names)} tasks, {len(others)} others")
    print("| prompts | recognised, mean | lowest | left out, mean | highest | others, highest |")
    print("|---|---|---|---|---|---|")
    for number in NUMBERS:
        own_T = recognised(memory, test, number).diagonal()
        taken_T = torch.cat([recognised(without[task], [test[task]], number).amax(1) for task in range(len(test))])
        shares = [own_T.mean(), own_T.min(), taken_T.mean(), taken_T.max()]
        shares += [recognised(memory, other, number).amax()] if other else []
        print("|", " | ".join([str(number), *(f"{share:.3f}" for share in shares)]), "|")


if __name__ == "__main__":
    main()
