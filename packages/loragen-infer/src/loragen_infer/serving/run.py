"""The work behind ``loragen-infer serve``: load, listen, answer until SIGTERM, and end when all are answered."""

import logging
import os
import signal
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from loragen_infer.errors import LoragenInferError
from loragen_infer.serving.config import ServeConfig
from loragen_infer.vllm.client import VllmClient
from loragen_infer.vllm.remarks import log_remarks

__all__ = ["run_serve"]

logger = logging.getLogger(__name__)


def run_serve(config: ServeConfig, *, say: Callable[[str], None]) -> None:
    """Serve until the process is told to end; ``say`` gets a line when the server answers.

    Raises:
        LoragenInferError: The extra is not installed, the model does not load, or the address is taken.
    """
    for name in ("litserve", "fastapi_swagger", "prometheus_client"):
        if find_spec(name) is None:
            raise LoragenInferError(f'serve needs {name}; install it with: pip install "loragen-infer[serve]".')
    vllm = VllmClient(config.vllm, os.environ.get("VLLM_API_KEY")) if config.vllm is not None else None
    listener = _listen(config)  # before what takes long
    import uvicorn

    from loragen_infer.generator import LoraGenerator
    from loragen_infer.serving.server import make_app
    from loragen_infer.store import AdapterStore

    generator = LoraGenerator.from_pretrained(
        config.model,
        revision=config.revision,
        device=config.device,
        dtype=config.dtype,
        cache_dir=Path(config.cache_dir) if config.cache_dir else None,
        condition_model=config.condition_model,
    )
    if vllm is not None:
        log_remarks(generator.mean_adapter(), config.model, logger)
    store = AdapterStore(config.store, generator, max_adapters=config.max_adapters)
    options = uvicorn.Config(
        make_app(store, config, vllm), log_config=None, access_log=False, timeout_graceful_shutdown=config.drain_seconds
    )
    server = uvicorn.Server(options)

    def end(_number: int, _frame: object) -> None:
        server.should_exit = True

    # For a signal before uvicorn listens to them; and it sends itself the signal again when it has drained, which would
    # kill it with another exit code.
    signal.signal(signal.SIGTERM, end)
    host, port = listener.getsockname()[:2]
    say(f"http://{f'[{host}]' if ':' in host else host}:{port} serves {config.model} with the store {store.folder}")
    server.run(sockets=[listener])


def _listen(config: ServeConfig) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        raise LoragenInferError(
            f"{config.host}:{config.port} cannot be listened on: {error.strerror or error}; choose another --port or "
            "--host."
        ) from error
