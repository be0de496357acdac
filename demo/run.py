"""The whole way on real parts: trains a zoo of LoRA adapters, trains a generator on it, and shows what it is worth.

Runs the four commands that a user would type and prints each. What an earlier run has finished, with the same settings
and the same code, is used again.

    python demo/run.py           about fifteen minutes on two CPU cores
    python demo/run.py --quick   the same with tiny numbers, to see that everything works; its scores mean nothing
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Unlabelled prompts of the task that the adapter of the demo is for.
PROMPTS = [
    f"Find the Greatest Common Divisor (GCD) of these numbers: {a}, {b}. Give only the GCD as your final answer."
    for a, b in ((84, 36), (17, 51))
]


# Per command the packages that it uses and the commands whose results it reads.
_USES = {
    "collect": (("lora-tokenizer", "loragen-infer", "loragen-train"), ()),
    "fit": (("lora-tokenizer", "hyperconv", "loragen-infer", "loragen-train"), ("collect",)),
    "generate": (("lora-tokenizer", "hyperconv", "loragen-infer"), ("fit",)),
    "evaluate": (("lora-tokenizer", "hyperconv", "loragen-infer"), ("collect", "fit")),
}


class Steps:
    """Runs commands one after another, and remembers what each printed and what it was run on."""

    def __init__(self, folder: Path, packages: Path = ROOT / "packages") -> None:
        self._folder = folder / "steps"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._packages = packages
        self._keys: dict[str, str] = {}

    def key(self, command: str, config: Path | None = None) -> str:
        """Digest of all that a step depends on: the code that it uses, its words and settings, the steps before it."""
        name = shlex.split(command)[1]
        packages, before = _USES[name]
        sources = [file for package in packages for file in sorted((self._packages / package).glob("src/**/*.py"))]
        parts = [*(self._keys[step].encode() for step in before), command.encode()]
        settings = config.read_bytes() if config else b""
        self._keys[name] = _digest(*(file.read_bytes() for file in sources), *parts, settings)
        return self._keys[name]

    def run(self, command: str, *, makes: Path, config: Path | None = None) -> str:
        """Return what ``command`` prints on standard output, from an earlier run if nothing has changed since.

        Args:
            command: The command line.
            makes: What it writes; without it an earlier run counts for nothing.
            config: The file that it reads its settings from.
        """
        key = self.key(command, config)
        words = shlex.split(command)
        record = self._folder / f"{words[1]}.json"
        print(f"\n$ {command}", flush=True)
        if record.is_file() and makes.exists():
            earlier = json.loads(record.read_text())
            if earlier["key"] == key:
                print(f"{earlier['output']}(from an earlier run)", flush=True)
                return str(earlier["output"])
        if words[1] == "generate":  # it never writes over an adapter
            shutil.rmtree(makes, ignore_errors=True)
        started = time.perf_counter()
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
        print(f"{done.stdout}({time.perf_counter() - started:.0f} s)", flush=True)
        if done.returncode != 0:
            sys.exit(done.returncode)
        record.write_text(json.dumps({"key": key, "output": done.stdout}))
        return done.stdout


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
    printed = steps.run(f"loragen-train fit --config {fit}", makes=output / "experiments", config=fit)
    experiment = printed.splitlines()[-1]
    given = " ".join(f"--prompt {shlex.quote(prompt)}" for prompt in PROMPTS)
    steps.run(f"loragen-infer generate --model {experiment} {given} --output {adapter}", makes=adapter)
    steps.run(f"loragen-infer evaluate --config {evaluate} --model {experiment}", makes=picture, config=evaluate)

    print(f"\nThe table is above; the picture is {picture}.")
    print(f"{adapter} is an ordinary PEFT adapter of the base model, which {zoo}/base_model holds unpacked.")
    print(f"Done in {time.perf_counter() - started:.0f} s.")


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


if __name__ == "__main__":
    main()
