"""Draws from generators of reasoning-gym in a process of its own, in which a seed gives the same samples every time.

Some generators go through sets of texts, whose order Python changes from process to process unless
``PYTHONHASHSEED`` is set before one starts; some take Python's global random numbers, which are the caller's; and some
print. Samples that change are samples that an interrupted ``collect`` could not go on with. It is no process of
multiprocessing, since that would run the caller's main module again.
"""

import atexit
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from threading import Lock
from typing import Any

from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.hub import first_line

__all__ = ["rows_of"]

_CHUNK = 16
# Of waiting for a request, after which the process ends; a training that goes on has no use for its memory.
_PATIENCE = 30


def rows_of(generator: str, settings: Mapping[str, Any], *, size: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield ``size`` prompts and responses of ``generator`` with ``settings``, drawn when they are asked for.

    Raises:
        LoragenTrainError: The generator does not take the settings, or fails; the message is what it says.
    """
    for start in range(0, size, _CHUNK):
        yield from _drawer().ask(
            generator=generator, settings=dict(settings), size=size, seed=seed, start=start, stop=start + _CHUNK
        )


class _Drawer:
    """The process that draws, and what it is asked; threads take turns."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process = subprocess.Popen(  # noqa: S603  # this very module, in Python's own words
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            # The packages that this process knows, wherever it has them from.
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        atexit.register(self._process.kill)

    def ask(self, **request: Any) -> list[tuple[str, str]]:
        """Return the rows asked for."""
        try:
            with self._lock:
                print(json.dumps(request), file=self._process.stdin, flush=True)
                line = self._process.stdout.readline() if self._process.stdout else ""
        except BrokenPipeError:
            line = ""
        if not line:
            _drawer.cache_clear()
            if (code := self._process.wait()) == -signal.SIGALRM:  # nobody had asked it for long
                return _drawer().ask(**request)
            raise LoragenTrainError(f"the process that draws has ended with exit code {code}")
        answer = json.loads(line)
        if "error" in answer:
            raise LoragenTrainError(answer["error"])
        return [(question, response) for question, response in answer["rows"]]


@cache
def _drawer() -> _Drawer:
    return _Drawer()


def _draw(generator: str, settings: Mapping[str, Any], size: int, seed: int) -> Iterator[tuple[str, str]]:
    import numpy as np
    import reasoning_gym

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the one that generators take
    for row in reasoning_gym.create_dataset(generator, size=size, seed=seed, **settings):
        yield row["question"], str(row["answer"])


def _answer_requests() -> None:
    """Answer a request a line until there are no more; those that follow each other go on with one drawing."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a generator prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the one who asks
    wanted: dict[str, Any] | None = None
    place, rows = 0, iter(list[tuple[str, str]]())
    signal.alarm(_PATIENCE)
    for line in sys.stdin:
        signal.alarm(0)
        request = json.loads(line)
        start, stop = request.pop("start"), request.pop("stop")
        try:
            if (request, start) != (wanted, place):
                wanted, rows = request, _draw(**request)
                next(islice(rows, start, start), None)
            place = stop
            answer = json.dumps({"rows": list(islice(rows, stop - start))})
        except Exception as error:  # noqa: BLE001  # whatever it is, the one who asks raises it
            wanted, answer = None, json.dumps({"error": first_line(error)})
        print(answer, file=answers, flush=True)
        signal.alarm(_PATIENCE)


if __name__ == "__main__":
    _answer_requests()
