"""What comes before a request is read: token, size of the body, length of the queue; and the counts of all."""

import asyncio
import json
import secrets
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loragen_infer.serving.config import ServeConfig
from loragen_infer.serving.interface import is_open_to_all

__all__ = ["Metrics", "RequestGuard"]

# A client that stops in the middle would keep its place in the queue for ever.
_BODY_SECONDS = 30
_PATHS = ("/adapters", "/health", "/metrics", "/openapi.json", "/docs")


class Metrics:
    """What ``/metrics`` shows, of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "loragen_requests", "Requests that were answered.", ("method", "path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "loragen_request_seconds", "Time to the end of an answer.", ("method", "path"), registry=self.registry
        )
        self.open = Gauge("loragen_open_adapter_requests", "Requests for adapters, now.", registry=self.registry)


class RequestGuard:
    """ASGI middleware that refuses what must not be read, with a sentence as JSON."""

    def __init__(self, app: ASGIApp, *, config: ServeConfig, metrics: Metrics) -> None:
        self._app, self._config, self._metrics = app, config, metrics
        self._num_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._guarded(scope, receive, counting_send)
        finally:
            path = scope["path"]
            # Labels are few, whatever is asked for.
            label = path if path in _PATHS else "/adapters/{id}" if path.startswith("/adapters/") else "other"
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "other"
            self._metrics.requests.labels(method, label, str(status)).inc()
            self._metrics.seconds.labels(method, label).observe(time.perf_counter() - start)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_allowed(scope):
            sentence = "The token is missing or wrong; send the header Authorization: Bearer TOKEN."
            await _refuse(send, 401, sentence, {"www-authenticate": "Bearer"})
            return
        if scope["method"] != "POST" or scope["path"] != "/adapters":  # nobody reads the body
            await self._app(scope, receive, send)
            return
        if self._num_open >= self._config.max_queue:
            sentence = f"{self._num_open} requests are open already, which is all that may wait; try again later."
            await _refuse(send, 429, sentence, {"retry-after": "1"})
            return
        self._num_open += 1
        self._metrics.open.set(self._num_open)
        try:
            await self._for_adapter(scope, receive, send)
        finally:
            self._num_open -= 1
            self._metrics.open.set(self._num_open)

    async def _for_adapter(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await self._read(receive)
        except TimeoutError:
            await _refuse(send, 408, f"The body did not come within {_BODY_SECONDS} seconds; send it again.")
            return
        if body is None:
            await _refuse(send, 413, f"The body is over {self._config.max_body_bytes:,} bytes; send less.")
            return
        await self._app(scope, _replayed(body, receive), send)

    def _is_allowed(self, scope: Scope) -> bool:
        if self._config.token is None or is_open_to_all(scope["path"]):
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        return secrets.compare_digest(given, f"Bearer {self._config.token}".encode())

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, or None if it is too large; of that the rest is not kept."""
        body, is_whole = b"", False
        while not is_whole:
            message = await receive()
            if message["type"] != "http.request":
                break
            body += message.get("body", b"")
            if len(body) > self._config.max_body_bytes:
                return None
            is_whole = not message.get("more_body", False)
        return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(send: Send, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
    content = json.dumps({"detail": sentence}).encode()
    fields = {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
    pairs = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})
