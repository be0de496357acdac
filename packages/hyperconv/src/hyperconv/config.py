"""The options of the generator: decides names, units, defaults and what is refused, without building anything.

docs/network.md has the reconstruction error of the options after a fixed number of steps. Where it tells them apart,
the defaults are among the best; where it does not (blocks, FiLM, pooling), they are the choice of the design.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from hyperconv.checks import Block, check_kernel_fits, check_kernel_size, check_size
from hyperconv.errors import HyperConvError

__all__ = ["Centering", "Expander", "GeneratorConfig", "Pooling", "num_basis_for"]

Centering = Literal["prompts", "none"]
Expander = Literal["linear", "basis", "broadcast"]
Pooling = Literal["mean", "attention"]


def num_basis_for(num_tasks: int, values_per_basis: int, max_parameters: int = 150_000_000) -> int:
    """How many patterns hold the adapters of so many tasks: one less than tasks, or as many as the budget allows.

    Args:
        num_tasks: the training tasks; less their mean, their adapters lie in a space of one dimension less.
        values_per_basis: values of one pattern, which is as large as an adapter (L·H·W).
        max_parameters: the most that patterns and offset may have together, except that two patterns are the least.

    Raises:
        HyperConvError: a size that is no positive integer.

    >>> num_basis_for(42, 230_400), num_basis_for(479, 3_407_872)
    (41, 43)
    """
    affordable = check_size("max_parameters", max_parameters) // check_size("values_per_basis", values_per_basis) - 1
    return max(2, min(check_size("num_tasks", num_tasks) - 1, affordable))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """What a HyperConvGenerator is made of; immutable, comparable, and plain JSON through to_dict / from_dict.

    Raises:
        HyperConvError: a value out of range, named with the field.

    >>> config = GeneratorConfig(grid=(16, 32))
    >>> config.max_seq_len
    512
    >>> GeneratorConfig.from_dict(config.to_dict()) == config
    True
    """

    condition_dim: int = 384
    """Length D of one prompt embedding (384 for all-MiniLM-L6-v2)."""
    hidden_dim: int = 384
    """Width of the condition features and of the tokens inside the HyperConv blocks."""
    grid: tuple[int, int] = (16, 32)
    """(L, H): number of transformer layers, tokens per layer; the output has L·H tokens."""
    output_dim: int = 384
    """W: values per generated token."""
    num_hyperconv_blocks: int = 3
    """HyperConv blocks between the sequence expander and the output projection; 0 leaves the expander alone."""
    block: Block = "sequential"
    """Which block: "sequential" or "dual"."""
    kernel_size: int = 3
    """Odd kernel length of the H and L convolutions, in positions along each axis they slide over."""
    kernel_size_w: int = 1
    """Odd kernel length of the W convolutions, in layers and in tokens; they hold nearly all weights of a block."""
    expander: Expander = "linear"
    """"linear": each token position has an offset and num_basis learned patterns, mixed by features that are linear in
    the mean of the prompts' embeddings; it can start as ridge regression (`HyperConvGenerator.start_from`), and blocks
    add to it, from zero on. "basis": patterns without an offset, mixed by normalised features of the encoded condition;
    "broadcast": every position starts from the same condition and only the position embeddings tell tokens apart."""
    num_basis: int = 16
    """Learned patterns per token position (expanders "linear" and, at least 2, "basis"); `num_basis_for` knows how many
    some tasks need."""
    num_tasks: int = 0
    """Training tasks that the network remembers, so that their own prompts give their own adapters; 0: none. What it
    starts from then stays as it is, and training adds corrections for all other prompts (expander "linear")."""
    num_corrections: int = 48
    """Patterns that training adds, each along one of the directions in which the prompts of the training tasks differ
    most, beside one that is always added; where tasks are remembered."""
    correction_gain: float = 30.0
    """Factor on the corrections: how much faster training moves them than all other weights, which it starts small; in
    z-scored tokens, whose unit is the spread over the tasks."""
    feature_scale: float = 1.0
    """Root mean square, at the start, of the features that mix the patterns; what the tokens are does not depend on it,
    but how fast training moves them does, as with basis_gain (expander "linear")."""
    basis_gain: float = 8.0
    """Factor on the mixing features, which have unit mean square; Adam moves all weights at one speed, so what a basis
    of given size can express grows this much faster (expander "basis")."""
    expander_skip: bool = True
    """Add the mixed patterns to the output directly, past the blocks (expander "basis"; "linear" always does)."""
    position_embedding: bool = True
    """Give every token a learned embedding of its layer and one of its place within the layer."""
    film: bool = True
    """Let the condition scale and shift the normalised input of every block."""
    pooling: Pooling = "mean"
    """How the prompts of a task become one condition: "mean" or "attention" (one learned query)."""
    centering: Centering = "prompts"
    """"prompts": subtract the mean of the training prompts' embeddings and divide by their spread, both as
    `HyperConvGenerator.center_on` has set them; "none"."""
    output_scale: float = 0.01
    """Factor, learned from this start, on the output projection; small starts near the mean adapter, and lets what
    the blocks add grow slowly. Without blocks the expander "linear" has no output projection."""
    activation_checkpointing: bool = False
    """While training keep only the inputs of the blocks and compute the rest twice: less memory, more time."""

    def __post_init__(self) -> None:
        for name in ("condition_dim", "hidden_dim", "output_dim"):
            check_size(name, getattr(self, name))
        # The features that mix the patterns are normalised over them, and of a single one nothing is left.
        check_size("num_basis", self.num_basis, at_least=2 if self.expander == "basis" else 1)
        for name in ("num_hyperconv_blocks", "num_tasks", "num_corrections"):
            check_size(name, getattr(self, name), at_least=0)
        if self.num_tasks and self.expander != "linear":
            raise HyperConvError(f"num_tasks is {self.num_tasks}, expected 0 with the expander {self.expander!r}.")
        if not isinstance(self.grid, tuple | list) or len(self.grid) != 2:
            raise HyperConvError(f"grid is {self.grid!r}, expected two sizes (L layers, H tokens per layer).")
        L, H = (check_size(f"{axis} of grid", size) for axis, size in zip("LH", self.grid, strict=True))
        # JSON and YAML know lists only; the field stays a tuple so that configs stay hashable.
        object.__setattr__(self, "grid", (L, H))
        for name, kind in (("block", Block), ("expander", Expander), ("pooling", Pooling), ("centering", Centering)):
            if getattr(self, name) not in get_args(kind):
                allowed = " or ".join(map(repr, get_args(kind)))
                raise HyperConvError(f"{name} is {getattr(self, name)!r}, expected {allowed}.")
        check_kernel_size("kernel_size", self.kernel_size)
        check_kernel_size("kernel_size_w", self.kernel_size_w)
        if self.num_hyperconv_blocks:
            check_kernel_fits("kernel_size", self.kernel_size, {"L": L, "H": H, "W": self.hidden_dim})
            check_kernel_fits("kernel_size_w", self.kernel_size_w, {"L": L, "H": H})
        for name in ("correction_gain", "feature_scale", "basis_gain", "output_scale"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise HyperConvError(f"{name} is {value!r}, expected a finite number greater than 0.")

    @property
    def max_seq_len(self) -> int:
        """Number of generated tokens, L·H."""
        return self.grid[0] * self.grid[1]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {**dataclasses.asdict(self), "grid": list(self.grid)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a config from `to_dict` or a loaded JSON file; raise HyperConvError for a key that is no field.

        The value "running" of `centering`, which version 0.1 wrote, is read as "prompts": their weights are the same.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise HyperConvError(
                f"config has unknown key(s) {', '.join(unknown)}, expected some of {', '.join(known)}."
            )
        was_running = "centering" in values and values["centering"] == "running"
        return cls(**{**values, "centering": "prompts"} if was_running else {**values})
