"""The work behind ``loragen-infer demo``: load the generator, put up the page, then load the language model."""

import importlib.util
import logging
import os
import signal
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from loragen_infer.demo.config import DemoConfig
from loragen_infer.errors import LoragenInferError
from loragen_infer.files import writing

if TYPE_CHECKING:
    from loragen_infer.demo.workshop import Workshop

__all__ = ["run_demo"]

logger = logging.getLogger(__name__)


def run_demo(config: DemoConfig) -> None:
    """Serve the page until the process is interrupted or terminated.

    Raises:
        LoragenInferError: Gradio is missing, the model cannot be loaded, the store cannot be written to, or the port is
            taken.
    """
    missing = next((name for name in ("gradio", "peft", "matplotlib") if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        raise LoragenInferError(f'The page needs {missing}; install it with: pip install "loragen-infer[demo]".')
    _check_port(config.host, config.port)
    with tempfile.TemporaryDirectory(prefix="loragen-demo-", ignore_cleanup_errors=True) as workspace:
        # Gradio reads these when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = workspace
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        workshop = _workshop(config, Path(workspace))
        _serve(config, workshop)


def _check_port(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise LoragenInferError(
            f"The page cannot be at {host}:{port} ({error.strerror or error}); choose another --port or --host."
        ) from error


def _workshop(config: DemoConfig, workspace: Path) -> "Workshop":
    from loragen_infer.demo.language_model import LanguageModel
    from loragen_infer.demo.nearest import TaskMap
    from loragen_infer.demo.workshop import Workshop
    from loragen_infer.generator import LoraGenerator
    from loragen_infer.store import AdapterStore

    generator = LoraGenerator.from_pretrained(
        config.model, revision=config.revision, device=config.device, condition_model=config.condition_model
    )
    if config.base_model is not None:
        generator.bundle = generator.bundle.with_base_model(config.base_model)
    store = Path(config.store)
    with writing(store):
        store.mkdir(parents=True, exist_ok=True)
    return Workshop(
        generator,
        store=AdapterStore(store, generator),
        tasks=TaskMap(generator, config.model, revision=config.revision),
        language_model=LanguageModel(generator.base_model, device=config.device),
        workspace=workspace,
    )


def _serve(config: DemoConfig, workshop: "Workshop") -> None:
    from loragen_infer.demo.page import CSS, THEME, build_page

    # A terminated process cleans up as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    page = build_page(workshop)
    try:
        _, address, shared = page.launch(
            server_name=config.host,
            server_port=config.port,
            share=config.share == "on",
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            theme=THEME,
            css=CSS,
            enable_monitoring=False,
            max_file_size="1mb",  # the page takes no files, but Gradio would
        )
        logger.info("The page is at %s (Ctrl+C ends it).", address)
        if shared:
            logger.info("Anyone can see it at %s.", shared)
        workshop.language_model.start()
        threading.Event().wait()
    finally:
        page.close(verbose=False)
