"""Runs commands as steps, and uses again what an earlier run has finished with the same words, settings and code."""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ROOT", "Steps"]

ROOT = Path(__file__).resolve().parent.parent
# The packages whose code decides what a command does.
_USES = {
    "collect": ("lora-tokenizer", "loragen-infer", "loragen-train"),
    "fit": ("lora-tokenizer", "hyperconv", "loragen-infer", "loragen-train"),
    "generate": ("lora-tokenizer", "hyperconv", "loragen-infer"),
    "evaluate": ("lora-tokenizer", "hyperconv", "loragen-infer"),
}


class Steps:
    """Runs commands one after another, and remembers what each printed, how long it took and what it was run on."""

    def __init__(self, folder: Path, packages: Path = ROOT / "packages") -> None:
        self._folder = folder / "steps"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._packages = packages
        self._keys: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        """What each step has taken, by its name; of one from an earlier run, what it took then."""

    def key(
        self,
        command: str,
        *,
        name: str | None = None,
        after: Sequence[str] = (),
        config: Path | None = None,
        data: Sequence[Path] = (),
    ) -> str:
        """Digest of all that a step depends on: the code that it uses, its words, settings and files of data, and the
        steps before it."""
        subcommand = shlex.split(command)[1]
        sources = [
            file for package in _USES[subcommand] for file in sorted((self._packages / package).glob("src/**/*.py"))
        ]
        parts = [*(file.read_bytes() for file in sources), *(self._keys[step].encode() for step in after)]
        parts += [command.encode(), config.read_bytes() if config else b"", *(file.read_bytes() for file in data)]
        key = hashlib.sha256(b"\0".join(parts)).hexdigest()
        self._keys[name or subcommand] = key
        return key

    def run(
        self,
        command: str,
        *,
        makes: Path,
        name: str | None = None,
        after: Sequence[str] = (),
        config: Path | None = None,
        data: Sequence[Path] = (),
        silent: bool = False,
    ) -> str:
        """Return what ``command`` prints on standard output, from an earlier run if nothing has changed since.

        Args:
            command: The command line.
            makes: What it writes; without it an earlier run counts for nothing. If it is a picture, it is named before
                the output.
            name: Name of the step; by default the subcommand.
            after: Names of the steps whose results it reads.
            config: The file that it reads its settings from.
            data: Files that it reads besides, which no step has made.
            silent: Do not show what it prints, which is for a program.
        """
        key = self.key(command, name=name, after=after, config=config, data=data)
        subcommand = shlex.split(command)[1]
        name = name or subcommand
        record = self._folder / f"{name}.json"
        print(f"\n$ {command}", flush=True)
        if record.is_file() and makes.exists():
            earlier = json.loads(record.read_text(encoding="utf-8"))
            if earlier["key"] == key:
                self.seconds[name] = earlier["seconds"]
                _show(earlier["output"], makes, silent=silent)
                print("(from an earlier run)", flush=True)
                return str(earlier["output"])
        if subcommand == "generate":  # it never writes over an adapter
            shutil.rmtree(makes, ignore_errors=True)
        started = time.perf_counter()
        done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
        self.seconds[name] = time.perf_counter() - started
        _show(done.stdout, makes, silent=silent and done.returncode == 0)
        print(f"({self.seconds[name]:.0f} s)", flush=True)
        if done.returncode != 0:
            sys.exit(done.returncode)
        if not makes.exists():
            sys.exit(f"{name} ended without {makes}, which another process may be making; try again later.")
        content = {"key": key, "seconds": self.seconds[name], "output": done.stdout}
        record.write_text(json.dumps(content), encoding="utf-8")
        return done.stdout


def _show(output: str, makes: Path, *, silent: bool) -> None:
    if silent:
        return
    if makes.suffix == ".png" and makes.is_file():
        print(f"The picture: {makes.resolve().as_uri()}\n")
    print(output, end="", flush=True)
