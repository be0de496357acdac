"""Runs functions side by side in threads; if one fails, the others are stopped."""

from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Self, TypeVar

__all__ = ["SideBySide"]

Result = TypeVar("Result")


class SideBySide:
    """Runs functions in the order in which they are begun, ``jobs`` at a time; what is left ends with the ``with``.

    The first that raises, or Ctrl-C, stops the others, and is raised at the end of the ``with``.
    """

    def __init__(self, jobs: int, *, stop: Callable[[], None]) -> None:
        self._pool = ThreadPoolExecutor(max_workers=jobs)
        self._stop = stop
        self._begun: list[Future[Any]] = []

    def begin(self, function: "Callable[..., Result]", *arguments: Any) -> "Future[Result]":
        """Return what will be the result of ``function``, which may wait for results of those begun before it."""
        future = self._pool.submit(function, *arguments)
        self._begun.append(future)
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if exc is None:
                done, _ = wait(self._begun, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
        except BaseException:
            self._end()
            raise
        if exc is not None:
            self._end()
        self._pool.shutdown()

    def _end(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._stop()
        self._pool.shutdown()
