"""Hands adapters of a store to a vLLM server that is running, through its endpoints for loading and unloading.

vLLM opens these endpoints when it is started with ``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``. It
reads an adapter from the path that it is told, so both must see the folder under the same path.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import IO, TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from loragen_infer.errors import LoragenInferError, reason_of
from loragen_infer.vllm.names import served_name

if TYPE_CHECKING:
    from loragen_infer.store import StoredAdapter

__all__ = ["VllmClient", "VllmError"]

_MAX_BYTES = 1 << 24  # of an answer: a list of some 33,000 adapters, of about 510 bytes each


class VllmError(LoragenInferError):
    """A vLLM server cannot be reached, or refuses."""


class VllmClient:
    """Loads and unloads adapters in a vLLM server.

    Args:
        url: Where vLLM listens, such as ``http://localhost:8000``.
        token: What vLLM was given as ``--api-key``, if it was.
        timeout: Seconds to wait for an answer.

    Raises:
        LoragenInferError: ``url`` is no web address, or ``token`` cannot stand in a header.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout: float = 60.0) -> None:
        if not _is_address(url):
            raise LoragenInferError(f"The address of vLLM is {url!r}; give one such as http://localhost:8000.")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise LoragenInferError("The token for vLLM holds characters that a header cannot; give --api-key's value.")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._token = token
        self._timeout = timeout
        self._opener = build_opener(_NoRedirect())

    def load(self, adapter: "StoredAdapter") -> str:
        """Load ``adapter`` and return the ``model`` that requests for it give; one that is loaded already stays.

        Raises:
            VllmError: vLLM cannot be reached, does not let anyone load adapters, or refuses this one.
        """
        name = served_name(adapter.id)
        path = str(adapter.path.absolute())
        status, answer = self._ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        # The list of its models would say so too, and is megabytes where many are loaded.
        if status != 200 and not (status == 400 and _says(answer, name, "already been loaded")):
            raise self._refused(f"does not load {name} from {path}", status, answer)
        return name

    def unload(self, adapter_id: str) -> None:
        """Unload the adapter of that id, if it is loaded.

        Raises:
            VllmError: vLLM cannot be reached, does not let anyone unload adapters, or refuses to.
        """
        name = served_name(adapter_id)
        status, answer = self._ask("/v1/unload_lora_adapter", {"lora_name": name})
        if status != 200 and not (status == 404 and _says(answer, name, "cannot be found")):
            raise self._refused(f"does not unload {name}", status, answer)

    def served_models(self) -> list[str]:
        """Return the names of the models and adapters that vLLM has loaded.

        Raises:
            VllmError: vLLM cannot be reached, or what answers is not vLLM.
        """
        status, answer = self._ask("/v1/models")
        try:
            return [str(model["id"]) for model in json.loads(answer)["data"]]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self._refused("does not list its models", status, answer) from error

    def _ask(self, path: str, content: dict[str, str] | None = None) -> tuple[int, str]:
        """Send ``content``, or nothing, and return the status and the text of the answer."""
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if content is None else json.dumps(content).encode()
        request = Request(self.url + path, data, headers)  # noqa: S310  # the scheme is checked above
        try:
            with self._answer(request) as (status, response):
                return status, response.read(_MAX_BYTES).decode(errors="replace")
        except (OSError, HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            said = reason_of(reason) if isinstance(reason, Exception) else str(reason)
            raise VllmError(
                f"vLLM at {self.url} cannot be reached ({said}); start it, or correct its address."
            ) from error

    @contextmanager
    def _answer(self, request: Request) -> Iterator[tuple[int, IO[bytes]]]:
        """Yield the status of the answer, whichever it is, and what its body is read from."""
        try:
            response = self._opener.open(request, timeout=self._timeout)
        except HTTPError as error:
            response = error
        with response:
            yield response.status, response

    def _refused(self, what: str, status: int, answer: str) -> VllmError:
        message = _message_of(answer)
        if status == 401:
            way_out = "set VLLM_API_KEY to what vLLM was given as --api-key"
        elif status in (404, 405) and message in ("Not Found", "Method Not Allowed"):
            way_out = "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
        elif status == 404:
            way_out = "let it see the folder of the store under the same path"
        else:
            way_out = "loragen-infer verify ADAPTER says what vLLM needs"
        return VllmError(f"vLLM at {self.url} {what} (status {status}: {message}); {way_out}.")


class _NoRedirect(HTTPRedirectHandler):
    """Takes a redirect for the answer, since the token is for no other address."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets without an end
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment


def _says(answer: str, name: str, what: str) -> bool:
    """Whether vLLM says that of the adapter ``name``, in words that its releases share."""
    message = _message_of(answer)
    return f"'{name}'" in message and what in message


def _message_of(answer: str) -> str:
    """Return in one line what vLLM, or the framework that it stands on, says in ``answer``."""
    try:
        content = json.loads(answer)
    except (ValueError, RecursionError):
        content = answer
    if isinstance(content, dict):
        inner = content.get("error", content)
        if isinstance(inner, dict):
            inner = inner.get("message", inner.get("detail", inner))
        content = inner
    text = " ".join(str(content).split())
    return text[:300].rstrip(".") or "no reason given"
