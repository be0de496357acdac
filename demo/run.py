"""The whole way on real parts: trains a zoo of LoRA adapters, trains a generator on it, and shows what it is worth.

Runs the four commands that a user would type and prints each. What an earlier run has finished, with the same settings
and the same code, is used again.

    python -m demo.run           about ten minutes on two CPU cores
    python -m demo.run --quick   the same with tiny numbers, to see that everything works; its scores mean nothing
"""

import argparse
import os
import shlex
import time
from pathlib import Path

from demo.steps import ROOT, Steps

# Unlabelled prompts of the task that the adapter of the demo is for.
PROMPTS = [
    f"Find the Greatest Common Divisor (GCD) of these numbers: {a}, {b}. Give only the GCD as your final answer."
    for a, b in ((84, 36), (17, 51))
]


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="Train a zoo and a generator, and evaluate what it generates.")
    parser.add_argument("--quick", action="store_true", help="tiny numbers: see that it works, in about two minutes")
    quick = parser.parse_args().quick
    os.chdir(ROOT)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every part of the demo comes from an installed package
    configs = Path("demo/quick" if quick else "demo/full")
    output = Path("demo_output/quick" if quick else "demo_output")
    started = time.perf_counter()
    steps = Steps(output)

    collect, fit, evaluate = (configs / f"{name}.yaml" for name in ("collect", "generator", "evaluate"))
    zoo, adapter, picture = (output / name for name in ("zoo", "adapter", "results/evaluation.png"))
    steps.run(f"loragen-train collect --config {collect}", makes=zoo / "zoo.json", config=collect)
    printed = steps.run(
        f"loragen-train fit --config {fit}", makes=output / "experiments", config=fit, after=["collect"]
    )
    experiment = printed.splitlines()[-1]
    given = " ".join(f"--prompt {shlex.quote(prompt)}" for prompt in PROMPTS)
    steps.run(f"loragen-infer generate --model {experiment} {given} --output {adapter}", makes=adapter, after=["fit"])
    steps.run(
        f"loragen-infer evaluate --config {evaluate} --model {experiment}",
        makes=picture,
        config=evaluate,
        after=["collect", "fit"],
    )

    print(f"\nThe picture of the table above is {picture}.")
    print(f"{adapter} is an ordinary PEFT adapter of the base model, which {zoo}/base_model holds unpacked.")
    print(f"Done in {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
