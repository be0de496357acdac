"""The paths that are not LitServe's: fetching an adapter, metrics; and every error as one sentence."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from loragen_infer.errors import LoragenInferError
from loragen_infer.serving.api import status_of
from loragen_infer.serving.guard import Metrics
from loragen_infer.store import AdapterStore

__all__ = ["add_routes"]

_WEIGHTS = "adapter_model.safetensors"


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
        return _sentence(error.status_code, str(error.detail))


def _packed(folder: Path, kind: str) -> Response:
    if kind == "safetensors":
        return Response((folder / _WEIGHTS).read_bytes(), media_type="application/octet-stream")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # the weights hardly compress
        for path in sorted(folder.iterdir()):
            # Without a time of its own, so that the same adapter is the same archive.
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())
    name = f'attachment; filename="{folder.name}.zip"'
    return Response(buffer.getvalue(), media_type="application/zip", headers={"content-disposition": name})


def _what_is_wrong(found: Any) -> str:
    place = ".".join(str(part)[:40] for part in found["loc"] if part != "body") or "The body"
    return f"{place}: {found['msg'].rstrip('.')}"


def _sentence(status: int, text: str) -> Response:
    # As ASCII, since what clients send may hold half a character, which is no UTF-8.
    return Response(json.dumps({"detail": text}), status, media_type="application/json")
