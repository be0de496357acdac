"""LitServe's application, batching and queue in one process, under uvicorn, which drains at SIGTERM.

``LitServer.run`` starts processes of its own that SIGTERM to the first does not reach, and closes the way back of the
answers before the open requests have them. So its application is run here, and its workers are threads: two, so that
one generates while the other writes.
"""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from litserve import LitAPI, LitServer
from litserve.loops import BatchedLoop, inference_worker
from litserve.loops.base import _SENTINEL_VALUE, _StopLoopError
from litserve.transport.base import MessageTransport
from litserve.utils import WorkerSetupStatus

from loragen_infer.serving.api import make_api
from loragen_infer.serving.config import ServeConfig
from loragen_infer.serving.guard import Metrics, RequestGuard
from loragen_infer.serving.interface import show_interface
from loragen_infer.serving.routes import add_routes
from loragen_infer.store import AdapterStore
from loragen_infer.vllm.client import VllmClient

__all__ = ["make_app"]


_NUM_WORKERS = 2


class _Transport(MessageTransport):  # type: ignore[misc]  # LitServe ships no types
    """Hands the answers of the workers' threads to the event loop of the requests."""

    def __init__(self, server: "_Server", loop: asyncio.AbstractEventLoop) -> None:
        self._server, self._loop = server, loop

    def send(self, item: Any, consumer_id: int) -> None:  # noqa: ARG002  # there is one consumer
        self._loop.call_soon_threadsafe(self._deliver, item)

    async def areceive(self, timeout: int | None = None, consumer_id: int | None = None) -> dict[str, Any]:
        raise NotImplementedError

    def _deliver(self, item: Any) -> None:
        uid, (data, status, *_) = item
        waiting = self._server.response_buffer.get(uid)
        if waiting is not None:
            waiting.response = (data, status)
            waiting.event.set()


class _Loop(BatchedLoop):  # type: ignore[misc]
    """Waits for a request and takes all that wait by then into its batch, so that none waits for company while a
    worker is free; LitServe's own lets every batch wait, and wakes up all the time where there is nothing to do."""

    def get_batch_requests(
        self,
        lit_api: LitAPI,
        request_queue: queue.Queue[Any],
        transport: MessageTransport,  # noqa: ARG002
    ) -> tuple[list[Any], list[Any]]:
        """Return (consumer, uid, request) of each request, and none that waited too long, as there is no limit."""
        taken = [request_queue.get()]
        end = time.monotonic() + lit_api.batch_timeout
        while len(taken) < lit_api.max_batch_size and taken[-1] != _SENTINEL_VALUE:
            left = end - time.monotonic()
            try:
                taken.append(request_queue.get(block=left > 0, timeout=max(left, 0)))
            except queue.Empty:
                break
        if taken[-1] == _SENTINEL_VALUE:
            taken.pop()
            if not taken:
                raise _StopLoopError
            request_queue.put(_SENTINEL_VALUE)  # the end is for its next round, or another worker's
        return [(consumer, uid, request) for consumer, uid, _, request in taken], []


class _Server(LitServer):  # type: ignore[misc]
    """A LitServer whose workers are threads, which start and end with the application."""

    def __init__(self, api: LitAPI, **options: Any) -> None:
        self.workers_setup_status: dict[str, str] = {}
        super().__init__(api, accelerator="cpu", devices=1, **options)
        api.loop = _Loop()
        self._api = api
        self._requests: queue.Queue[Any] = queue.Queue()
        self.litapi_request_queues = {api.api_path: self._requests}

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        app.response_queue_id = 0  # type: ignore[attr-defined]  # LitServe's own
        transport, status = _Transport(self, asyncio.get_running_loop()), self.workers_setup_status
        workers = []
        for number in range(_NUM_WORKERS):
            status[f"adapters_{number}"] = WorkerSetupStatus.STARTING
            arguments = (self._api, "cpu", number, self._requests, transport, status, self._callback_runner, False)
            workers.append(threading.Thread(target=inference_worker, args=arguments, daemon=True))
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            for _ in workers:
                self._requests.put(_SENTINEL_VALUE)
            for worker in workers:
                await asyncio.to_thread(worker.join, 5.0)


def make_app(store: AdapterStore, config: ServeConfig, vllm: VllmClient | None = None) -> FastAPI:
    """Return the application that serves ``store``, which must have a generator; ``vllm`` loads what is made."""
    metrics = Metrics()
    guard = (RequestGuard, {"config": config, "metrics": metrics})
    server = _Server(make_api(store, config, vllm), timeout=False, middlewares=[guard])
    app: FastAPI = server.app
    app.title = "loragen-infer"
    add_routes(app, store, metrics)
    show_interface(app, config)
    return app
