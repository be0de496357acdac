"""Refuses a device or a dtype that torch cannot use before anything is loaded for it."""

from typing import TYPE_CHECKING

from loragen_infer.errors import LoragenInferError, reason_of

if TYPE_CHECKING:
    import torch

__all__ = ["as_dtype", "check_device"]

_DTYPES = ("float32", "bfloat16", "float16")


def check_device(name: "str | torch.device") -> None:
    """Return if torch can put a tensor on the device called ``name``, such as ``cpu`` or ``cuda:0``.

    Raises:
        LoragenInferError: It is no device, or this machine or this build of torch does not have it.

    Example:
        >>> check_device("cpu")
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:  # an assertion where torch was built without CUDA
        raise LoragenInferError(
            f"The device {str(name)!r} cannot be used ({reason_of(error)}); give another, such as cpu."
        ) from error


def as_dtype(dtype: "str | torch.dtype") -> "torch.dtype":
    """Return the ``torch.dtype`` that ``dtype`` is or names.

    Raises:
        LoragenInferError: It is none to compute in.

    Example:
        >>> as_dtype("bfloat16")
        torch.bfloat16
    """
    import torch

    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise LoragenInferError(f"The dtype {name!r} is unknown; use one of {', '.join(_DTYPES)}.")
    return getattr(torch, name)  # type: ignore[no-any-return]
