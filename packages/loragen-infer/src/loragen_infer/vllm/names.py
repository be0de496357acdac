"""What an adapter of a store is called in vLLM: the ``model`` of a request, and the number that vLLM keeps it under."""

import re

__all__ = ["adapter_id_of", "request_id_of", "served_name"]

_NAME = re.compile(r"loragen:([0-9a-f]{16})")


def served_name(adapter_id: str) -> str:
    """Return what a request to vLLM gives as its ``model``.

    Example:
        >>> served_name("00000000000000ff")
        'loragen:00000000000000ff'
    """
    return f"loragen:{adapter_id}"


def adapter_id_of(model: str) -> str | None:
    """Return the id in the ``model`` of a request; None: it is the name of something else.

    Example:
        >>> adapter_id_of("loragen:00000000000000ff")
        '00000000000000ff'
        >>> adapter_id_of("loragen:../../etc") is None
        True
    """
    found = _NAME.fullmatch(model)
    return found[1] if found else None


def request_id_of(adapter_id: str) -> int:
    """Return the positive number of an adapter, the same in every process: the lower 63 bits of its id.

    vLLM keeps the numbers of a batch in int64. Fewer bits would let two of some ten thousand adapters meet, and vLLM
    takes two adapters of one number for the same.

    Example:
        >>> request_id_of("80000000000000ff")
        255
    """
    return int(adapter_id, 16) & (2**63 - 1) or 1  # 0 is vLLM's number for no adapter
