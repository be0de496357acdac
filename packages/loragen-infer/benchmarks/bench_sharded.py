"""Times what ``generate --ray`` does on one core, and says what a hundred million adapters would take.

Run with: python packages/loragen-infer/benchmarks/bench_sharded.py [--adapters 128] [--shard-size 64]

The generator has the seed configuration for SmolLM2-135M-Instruct (LoRA of r 4 on q_proj and v_proj, 230,400 values);
its weights are random, which changes no time. What counts is processor time of one thread, so that other work on the
machine changes little; Ray itself, whose part is to hand out shards, is not started.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from bench_generate import make_bundle

WANTED = 100_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=128, help="how many to make")
    parser.add_argument("--shard-size", type=int, default=64, help="adapters in a shard")
    parser.add_argument("--prompts", type=int, default=4, help="prompts of a task")
    parser.add_argument("--planned-shard-size", type=int, default=1024, help="adapters in a shard of the plan")
    parser.add_argument("--core-hour", type=float, default=0.04, help="price of a core for an hour, in dollars")
    parser.add_argument("--terabyte-month", type=float, default=20, help="price of a terabyte for a month, in dollars")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundle = make_bundle(root / "generator.safetensors", num_layers=30, r=4, widths=(576, 576, 192))
        prompts = root / "tasks.jsonl"
        with prompts.open("w", encoding="utf-8") as stream:
            for task in range(max(options.adapters, 20_000)):
                texts = [f"What is {task} + {index}? Answer with the number only." for index in range(options.prompts)]
                stream.write(json.dumps({"prompts": texts}) + "\n")
        checked = bench_plan(prompts, options.shard_size)
        seconds, num_bytes = bench_shards(bundle, prompts, root / "adapters", options.adapters, options.shard_size)
    shards, terabytes = -(-WANTED // options.planned_shard_size), WANTED * num_bytes / 1e12
    core_hours = WANTED * seconds / 3600
    print(
        f"{WANTED:,} adapters: {shards:,} shards of {options.planned_shard_size * num_bytes / 1e6:,.0f} MB, "
        f"{terabytes:,.1f} TB; {core_hours:,.0f} core hours ({core_hours / 1000:,.1f} h on 1,000 cores), "
        f"{core_hours * options.core_hour:,.0f} dollars, and "
        f"{terabytes * options.terabyte_month:,.0f} a month on disk; "
        f"{WANTED / checked / 60:,.0f} minutes to check the input first"
    )


def bench_plan(prompts: Path, shard_size: int) -> float:
    """Lines a second that are checked and laid out before the work."""
    from loragen_infer.sharded.prompt_source import plan_shards

    start = time.process_time()
    shards = plan_shards([prompts], shard_size=shard_size)
    rate = sum(shard.num_adapters for shard in shards) / (time.process_time() - start)
    print(f"input: {rate:,.0f} lines a second are checked and laid out")
    return rate


def bench_shards(bundle: Path, prompts: Path, output: Path, count: int, shard_size: int) -> tuple[float, float]:
    """Processor seconds and bytes of an adapter, in shards on disk."""
    from loragen_infer.generation.config import GenerateConfig
    from loragen_infer.generation.run import load_generator
    from loragen_infer.sharded.prompt_source import plan_shards
    from loragen_infer.sharded.worker import ShardMaker

    config = GenerateConfig(model=str(bundle), prompt_file=str(prompts), output=str(output))
    maker = ShardMaker(config, load_generator(config).fingerprint)
    first, *others = plan_shards([prompts], shard_size=shard_size)[: 1 + -(-count // shard_size)]
    maker.make(first, "warm")
    start = time.process_time()
    for shard in others:
        maker.make(shard, "timed")
    made = sum(shard.num_adapters for shard in others)
    seconds = (time.process_time() - start) / made
    num_bytes = sum(path.stat().st_size for path in output.glob("shards/*")) / (made + first.num_adapters)
    print(f"shards: {1 / seconds:.1f} adapters a second on one core, {num_bytes:,.0f} bytes an adapter")
    return seconds, num_bytes


if __name__ == "__main__":
    main()
