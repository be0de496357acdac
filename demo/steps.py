"""Runs commands as steps, and uses again what an earlier run has finished with the same words, settings and code."""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock

__all__ = ["ROOT", "Steps"]

ROOT = Path(__file__).resolve().parent.parent
# As many of the last lines of a log are shown of a step that failed.
_LOG_LINES = 20
# The packages whose code decides what a command does.
_USES = {
    "collect": ("lora-tokenizer", "loragen-infer", "loragen-train"),
    "fit": ("lora-tokenizer", "hyperconv", "loragen-infer", "loragen-train"),
    "generate": ("lora-tokenizer", "hyperconv", "loragen-infer"),
    "evaluate": ("lora-tokenizer", "hyperconv", "loragen-infer"),
}


class Steps:
    """Runs commands, and remembers what each printed, how long it took and what it was run on.

    Threads may run several at a time, each after those that it depends on.
    """

    def __init__(self, folder: Path, packages: Path = ROOT / "packages") -> None:
        self._folder = folder / "steps"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._packages = packages
        self._keys: dict[str, str] = {}
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._lock = Lock()
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
        num_cores: int | None = None,
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
            num_cores: How many processor cores it may use, where others run beside it; what it says of its progress
                goes to a file then, ``steps/<name>.log``.
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
        log = None if num_cores is None else record.with_suffix(".log")
        output, exit_code = self._execute(command, num_cores, log)
        self.seconds[name] = time.perf_counter() - started
        if log is not None:
            print(f"\n{name}:", flush=True)
        _show(output, makes, silent=silent and exit_code == 0)
        print(f"({self.seconds[name]:.0f} s)", flush=True)
        if exit_code != 0:
            if log is not None and not self._stopped:
                sys.stderr.write("".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-_LOG_LINES:]))
            sys.exit(exit_code)
        if not makes.exists():
            sys.exit(f"{name} ended without {makes}, which another process may be making; try again later.")
        content = {"key": key, "seconds": self.seconds[name], "output": output}
        record.write_text(json.dumps(content), encoding="utf-8")
        return output

    def stop(self) -> None:
        """End what threads are running, which keeps what is finished, and let them start nothing more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def _execute(self, command: str, num_cores: int | None, log: Path | None) -> tuple[str, int]:
        """Return what a command prints, and its exit code."""
        threads = {} if num_cores is None else {"OMP_NUM_THREADS": str(num_cores)}
        with nullcontext() if log is None else log.open("w", encoding="utf-8") as told:
            with self._lock:
                if self._stopped:
                    sys.exit("Another step has ended the run.")
                process = subprocess.Popen(
                    shlex.split(command),
                    stdout=subprocess.PIPE,
                    stderr=told,
                    text=True,
                    cwd=ROOT,
                    env=os.environ | threads,
                )
                self._running.add(process)
            with process:
                output, _ = process.communicate()
            with self._lock:
                self._running.remove(process)
        return output, process.returncode


def _show(output: str, makes: Path, *, silent: bool) -> None:
    if silent:
        return
    if makes.suffix == ".png" and makes.is_file():
        print(f"The picture: {makes.resolve().as_uri()}\n")
    print(output, end="", flush=True)
