"""The paths that are not LitServe's: fetching an adapter, metrics; and every error as one sentence."""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from loragen_infer.errors import LoragenInferError
from loragen_infer.serving.api import status_of
from loragen_infer.serving.guard import Metrics
from loragen_infer.store import AdapterStore

__all__ = ["add_routes"]

_WEIGHTS = "adapter_model.safetensors"
_PIECE_BYTES = 1 << 18
_NO_JSON = 'cannot be read as JSON; send {"prompts": ["…"]}'


def add_routes(app: FastAPI, store: AdapterStore, metrics: Metrics) -> None:
    """Add to ``app`` what fetches adapters of ``store`` and shows ``metrics``."""

    # Not a coroutine, so that a slow disk holds up nobody else.
    @app.get("/adapters/{adapter_id}", response_class=Response, summary="A zip of the PEFT folder, or its weights")
    def fetch(adapter_id: str, format: Literal["zip", "safetensors"] = "zip") -> Response:  # noqa: A002
        stored = store.find(adapter_id)
        try:
            if stored is not None:
                return _packed(stored.path, format)
        except FileNotFoundError:  # removed meanwhile, since the store was full
            pass
        except OSError as error:
            raise LoragenInferError(f"The adapter {adapter_id} cannot be read: {error.strerror}.") from error
        raise HTTPException(404, f"There is no adapter {adapter_id}; POST its prompts to /adapters.")

    @app.get("/metrics", response_class=Response, summary="Counts for Prometheus")
    def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        return _sentence(422, "; ".join(_what_is_wrong(found) for found in error.errors()[:3]) + ".")

    @app.exception_handler(LoragenInferError)
    async def refused(_request: Request, error: LoragenInferError) -> Response:
        return _sentence(status_of(error), str(error))

    @app.exception_handler(HTTPException)
    async def other(_request: Request, error: HTTPException) -> Response:
        # What Python's parser gives up on, such as lists in lists in lists, FastAPI does not name.
        return _sentence(error.status_code, f"The body {_NO_JSON}." if error.status_code == 400 else str(error.detail))


def _packed(folder: Path, kind: str) -> Response:
    if kind == "safetensors":
        return _sent((folder / _WEIGHTS).open("rb"), "application/octet-stream", {})
    name = f'attachment; filename="{folder.name}.zip"'
    return _sent(_zipped(folder), "application/zip", {"content-disposition": name})


def _zipped(folder: Path) -> IO[bytes]:
    """The files of ``folder`` as an archive on disk that is gone when it is closed."""
    with ExitStack() as stack:
        stream = stack.enter_context(tempfile.TemporaryFile())
        with zipfile.ZipFile(stream, "w") as archive:  # the weights hardly compress
            for path in sorted(folder.iterdir()):
                # Without a time of its own, so that the same adapter is the same archive.
                info = zipfile.ZipInfo(path.name)
                info.file_size = path.stat().st_size
                with path.open("rb") as source, archive.open(info, "w") as target:
                    shutil.copyfileobj(source, target)
        stack.pop_all()
    return stream


def _sent(stream: IO[bytes], media_type: str, headers: dict[str, str]) -> Response:
    """What is in ``stream``, which an open file keeps when the store removes the adapter meanwhile."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    # LitServe's application would compress it, which takes over ten times as long and saves a few percent.
    headers = {**headers, "content-length": str(size), "content-encoding": "identity"}
    return StreamingResponse(_pieces(stream), media_type=media_type, headers=headers)


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    # A client takes its time, and there may be many: no more than this is in memory for each.
    with stream:
        while piece := stream.read(_PIECE_BYTES):
            yield piece


def _what_is_wrong(found: Any) -> str:
    if found["type"] == "json_invalid":
        return f"The body {_NO_JSON} ({found['ctx']['error']}, character {found['loc'][-1]})"
    place = ".".join(str(part)[:40] for part in found["loc"] if part != "body") or "The body"
    return f"{place}: {found['msg'].rstrip('.')}"


def _sentence(status: int, text: str) -> Response:
    # As ASCII, since what clients send may hold half a character, which is no UTF-8.
    return Response(json.dumps({"detail": text}), status, media_type="application/json")
