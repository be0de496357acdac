"""What is there some time after the page, and is waited for by the clicks that need it."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from loragen_infer.errors import LoragenInferError

__all__ = ["Loading"]

T = TypeVar("T")


class Loading(Generic[T]):
    """Something that is loaded once, and that other threads may ask for before it is there.

    Args:
        name: What it is called on the page.
        make: Loads it.
    """

    def __init__(self, name: str, make: Callable[[], T]) -> None:
        self.name, self._make = name, make
        self._made: Future[T] = Future()

    def load(self) -> None:
        """Load it, once; what goes wrong is raised by :meth:`result`."""
        try:
            self._made.set_result(self._make())
        except Exception as error:  # noqa: BLE001  # whoever waits for it is told
            self._made.set_exception(error)

    def give_up(self) -> None:
        """Let nobody wait for it any more: a process does not end while a thread of its server waits."""
        if not self.is_settled:
            self._made.set_exception(LoragenInferError(f"The command ended before {self.name} was loaded."))

    @property
    def is_settled(self) -> bool:
        """Whether it is loaded, or will never be."""
        return self._made.done()

    @property
    def status(self) -> str:
        """How far it is, in words."""
        if not self.is_settled:
            return f"{self.name} is being loaded…"
        error = self._made.exception()
        return f"{self.name} is ready." if error is None else f"{self.name} is not there: {error}"

    def result(self) -> T:
        """Return it as soon as it is there, or raise what loading it raised."""
        return self._made.result()
