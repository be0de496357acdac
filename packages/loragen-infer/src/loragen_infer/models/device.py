"""Refuses a device or a dtype that torch cannot use before anything is loaded for it."""

from typing import TYPE_CHECKING

from loragen_infer.errors import LoragenInferError, reason_of

if TYPE_CHECKING:
    import torch

__all__ = ["as_dtype", "check_device", "dtype_name"]

_DTYPES = ("float32", "bfloat16", "float16")


def check_device(name: "str | torch.device") -> None:
    """Raise LoragenInferError if torch cannot put a tensor on the device, such as ``cpu`` or ``cuda:0``."""
    import torch

    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:  # an assertion where torch was built without CUDA
        raise LoragenInferError(
            f"The device {str(name)!r} cannot be used ({reason_of(error)}); give another, such as cpu."
        ) from error


def as_dtype(dtype: "str | torch.dtype") -> "torch.dtype":
    """Return the ``torch.dtype`` that ``dtype`` is or names; raise LoragenInferError if it is none to compute in."""
    import torch

    name = dtype_name(dtype)
    if name not in _DTYPES:
        raise LoragenInferError(f"The dtype {name!r} is unknown; use one of {', '.join(_DTYPES)}.")
    return getattr(torch, name)  # type: ignore[no-any-return]


def dtype_name(dtype: "str | torch.dtype") -> str:
    """Return ``"float16"`` for ``torch.float16``."""
    return str(dtype).removeprefix("torch.")
