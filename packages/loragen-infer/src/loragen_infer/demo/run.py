"""The work behind ``loragen-infer demo``: read the bundle, put up the page, then load the encoder and the model."""

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
    from loragen_infer.bundle import GeneratorBundle
    from loragen_infer.demo.workshop import Maker, Workshop

__all__ = ["run_demo"]

logger = logging.getLogger(__name__)


def run_demo(config: DemoConfig) -> None:
    """Serve the page until the process is interrupted or terminated.

    Raises:
        LoragenInferError: Gradio is missing, the bundle or its encoder is not found or cannot be read, the store cannot
            be written to, or the port is taken; or, when the page is up, the encoder cannot be loaded.
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
    """All that the page shows at first; what takes seconds to load is left to :meth:`Workshop.load`."""
    from loragen_infer.bundle import GeneratorBundle, find_bundle
    from loragen_infer.bundle.encoder_match import find_encoder
    from loragen_infer.demo.language_model import LanguageModel
    from loragen_infer.demo.loading import Loading
    from loragen_infer.demo.nearest import TaskMap
    from loragen_infer.demo.workshop import Workshop
    from loragen_infer.models.locate import hub_name

    file = find_bundle(config.model, revision=config.revision)
    bundle = GeneratorBundle.load(file)
    known = bundle.base_model and (hub_name(bundle.base_model) or bundle.base_model)
    bundle = bundle.with_base_model(config.base_model or known)
    find_encoder(bundle, file.parent, device=config.device, condition_model=config.condition_model)
    with writing(Path(config.store)):
        Path(config.store).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=config.store).close()
    encoder = bundle.text_encoder_name or bundle.condition_model_name
    return Workshop(
        bundle,
        maker=Loading(f"The encoder of prompts ({encoder})", lambda: _maker(config, bundle, file.parent)),
        tasks=TaskMap(bundle, file),
        language_model=LanguageModel(bundle.base_model, device=config.device),
        workspace=workspace,
    )


def _maker(config: DemoConfig, bundle: "GeneratorBundle", folder: Path) -> "Maker":
    from loragen_infer.bundle.encoder_match import load_encoder_of
    from loragen_infer.demo.workshop import Maker
    from loragen_infer.generator import LoraGenerator
    from loragen_infer.store import AdapterStore

    encoder = load_encoder_of(bundle, folder, device=config.device, condition_model=config.condition_model)
    generator = LoraGenerator(bundle, encoder, device=config.device)
    # The adapters name the base model as --base-model does, a path too.
    generator.bundle = bundle
    return Maker(generator=generator, store=AdapterStore(config.store, generator))


def _serve(config: DemoConfig, workshop: "Workshop") -> None:
    from loragen_infer.demo.page import CSS, THEME, build_page

    ended = threading.Event()

    def end(_number: int, _frame: object) -> None:
        ended.set()
        raise KeyboardInterrupt

    # A terminated process cleans up as an interrupted one does.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    page = build_page(workshop)
    try:
        _, address, shared = page.launch(
            server_name=config.host,
            server_port=config.port,
            share=config.share,
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
        # Here, where an interrupt ends it: a process that ends with libraries at work in a thread may crash.
        for load in workshop.loads:
            load()
            if ended.is_set():  # the interrupt is lost where it comes while a destructor runs
                break
        ended.wait()
        raise KeyboardInterrupt
    finally:
        workshop.give_up()
        page.close(verbose=False)
