"""Refuses a device that torch cannot use before anything is loaded for it."""

from loragen_infer.errors import LoragenInferError

__all__ = ["check_device"]


def check_device(name: str) -> None:
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
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise LoragenInferError(f"The device {name!r} cannot be used ({reason}); give another, such as cpu.") from error
