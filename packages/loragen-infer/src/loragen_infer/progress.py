"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
from typing import Self

from tqdm import tqdm

__all__ = ["ProgressBar"]

logger = logging.getLogger(__name__)


class ProgressBar:
    """Counts from ``done`` to ``total``; elsewhere than on a terminal it logs a line at every tenth of the way."""

    def __init__(self, description: str, *, total: int, unit: str, done: int = 0) -> None:
        self._bar = tqdm(
            total=total, initial=done, desc=description, unit=unit, disable=not sys.stderr.isatty(), file=sys.stderr
        )
        self._description, self._total, self._unit = description, total, unit
        self._done = done

    def advance(self, **shown: str) -> None:
        """Count one more and show ``shown`` (names and formatted values) beside it."""
        self._done += 1
        if not self._bar.disable:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update()
        elif self._total and self._done * 10 // self._total > (self._done - 1) * 10 // self._total:
            values = "".join(f", {name} {value}" for name, value in shown.items())
            logger.info("%s: %s %d of %d%s.", self._description, self._unit, self._done, self._total, values)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
