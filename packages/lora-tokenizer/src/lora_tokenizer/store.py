"""A cache of tokenized checkpoints, shared by processes and safe against being killed at any moment.

In the folder of a store:

- `parts/<entry>.safetensors`: the tokens of one checkpoint, written as soon as they are made, so that work that is done
  survives.
- `sets/<set>.safetensors`: the tokens of all checkpoints of one request, in one file that can be mapped; its parts go
  when it is there. `sets/<set>.json` is its manifest.
- `sources/<source>.json`: the content hash of a checkpoint as it was at a certain size and time, so that one that has
  not changed is not read again.
- `locks/`: empty files that keep two processes from doing the same work.

What an entry is called is in `store_places`, how it is made in `store_parts`, how a set is put together in
`store_sets`, what may be deleted in `store_pruning`. Every checksum is verified before a set is handed out; what fails
is made again from its source.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lora_tokenizer.errors import LoraTokenizerError, writing
from lora_tokenizer.io.atomic import clear_leftovers
from lora_tokenizer.layout.layout import TokenLayout
from lora_tokenizer.store_parts import OnProgress, build_all
from lora_tokenizer.store_places import FOLDERS, StorePlaces
from lora_tokenizer.store_pruning import prune_store
from lora_tokenizer.store_sets import assemble
from lora_tokenizer.token_set import TokenSet


class TokenStore:
    """A cache of tokens in a folder.

    >>> import tempfile, torch
    >>> from lora_tokenizer import AdapterConfig, LoraAdapter, write_adapter
    >>> names = ("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight")
    >>> adapter = LoraAdapter(
    ...     config=AdapterConfig(r=1, lora_alpha=2, target_modules=("q",)),
    ...     tensors={names[0]: torch.ones(1, 3), names[1]: torch.ones(2, 1)},
    ... )
    >>> with tempfile.TemporaryDirectory() as root:
    ...     path = write_adapter(adapter, f"{root}/one")
    ...     tokens = TokenStore(f"{root}/store").get([path], TokenLayout.from_adapter(adapter, token_dim=4))
    ...     tokens[0].tolist()
    [[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        """Where the store lives; it is made when something is first put there."""

    def get(
        self,
        paths: Sequence[str | Path],
        layout: TokenLayout,
        *,
        num_workers: int = 0,
        verify: bool = True,
        on_progress: OnProgress | None = None,
        **read_options: Any,
    ) -> TokenSet:
        """The tokens of the checkpoints at `paths`, in that order; those not in the store are read and encoded.

        Any number of processes may ask for the same or overlapping sets at once: they share the work.

        Args:
            paths: adapter folders or checkpoint files.
            layout: how to encode them.
            num_workers: processes to start for the encoding; 0 does it in this one.
            verify: check the checksum of every entry before handing out a set that was there already.
            on_progress: called with (checkpoints done, checkpoints in all).
            read_options: passed on to `read_adapter`.

        Raises:
            LoraTokenizerError: a checkpoint cannot be read or does not fit the layout (what was done before is kept),
                or the disk is full (nothing half-written is left).
        """
        sources = [Path(path).absolute() for path in paths]
        if not sources:
            raise LoraTokenizerError("no checkpoints are given to the token store")
        with writing(self.folder):
            for name in FOLDERS:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
                clear_leftovers(self.folder / name)
            places = StorePlaces(folder=self.folder, layout=layout, read_options=read_options)
            contents = build_all(places, sources, num_workers, on_progress)
            return assemble(places, sources, contents, verify)

    def prune(self, *, keep: Iterable[TokenSet] = (), unused_days: float = 0.0) -> int:
        """Delete what is no longer wanted; a store does not do so by itself.

        Sets that another process is making stay, and so does the data of sets that a process has begun to read. Where
        a process has got a set and not begun to read it, it will be told to build it again. The empty files in
        `locks/` stay.

        Args:
            keep: sets that stay.
            unused_days: what was asked for or made in the last so many days stays too.

        Returns:
            Number of bytes freed.

        Raises:
            LoraTokenizerError: the system refuses.
        """
        with writing(self.folder):
            return prune_store(self.folder, {token_set.path for token_set in keep}, unused_days)
