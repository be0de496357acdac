"""The demo page in a real browser, served by the command itself."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from loragen_infer.evaluation.task_means import TASK_MEANS_NAME, TaskMeansWriter
from peft import PeftModel
from transformers import AutoModelForCausalLM

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The command, in a process that says where it connects to.
WATCHED = """
import sys

def watch(event, arguments):
    place = {"socket.connect": arguments[1:2], "socket.getaddrinfo": arguments[:1]}.get(event)
    host = place[0][0] if place and isinstance(place[0], tuple) else place[0] if place else None
    if isinstance(host, str) and host not in ("", "127.0.0.1", "::1", "localhost", "/"):
        print("outside:", event, arguments, file=sys.stderr, flush=True)

sys.addaudithook(watch)
from loragen_infer.cli.main import main

sys.exit(main())
"""
# The command, whose encoder is loaded as soon as there is a file "go" in its folder.
GATED = """
import sys, time
from pathlib import Path
from loragen_infer.bundle import encoder_match

load = encoder_match.load_encoder

def load_when_told(*arguments, **options):
    while not Path("go").exists():
        time.sleep(0.05)
    return load(*arguments, **options)

encoder_match.load_encoder = load_when_told
from loragen_infer.cli.main import main

sys.exit(main())
"""
# The same, where the encoder is loaded by code that an interrupt does not get out of, as it does not of a destructor;
# there is a file "loading" from when it is there.
DEAF = GATED.replace(
    """\
    while not Path("go").exists():
        time.sleep(0.05)
""",
    """\
    Path("loading").touch()
    while not Path("go").exists():
        try:
            time.sleep(0.05)
        except KeyboardInterrupt:
            Path("go").touch()
""",
)
WAIT = 60_000


@contextmanager
def command(program: str, root: Path) -> Iterator[SimpleNamespace]:
    """The program at work on ``root / "model"`` until the end of the block, from when its page is up."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["demo", "--model", str(root / "model"), "--store", str(root / "adapters"), "--port", str(port)]
    log = root / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen([sys.executable, "-c", program, *words], stderr=stream, cwd=root)
    try:
        end = time.monotonic() + 120
        while "The page is at" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, "the page does not come up"
            time.sleep(0.1)
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}/", process=process, log=log)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def served(zoo, encoder, tmp_path_factory) -> SimpleNamespace:
    """The command at work on a tiny model with two training tasks."""
    root = tmp_path_factory.mktemp("served")
    bundle, layout = zoo.bundle, zoo.bundle.layout
    bundle.save(root / "model" / "generator.safetensors")
    means = root / "model" / TASK_MEANS_NAME
    with TaskMeansWriter(means, num_tokens=layout.num_tokens, token_dim=layout.token_dim) as writer:
        for name, prompt in {"sums": "What is 2 + 3?", "French": "Translate to French: dog"}.items():
            writer.add(name, encoder.encode([prompt]), bundle.stats.mean)
    with command(WATCHED, root) as started:
        yield SimpleNamespace(**vars(started), store=root / "adapters", root=root, zoo=zoo)
    assert started.process.returncode == 130, started.log.read_text()
    assert "outside:" not in started.log.read_text()
    assert "Traceback" not in started.log.read_text()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as runner:
        opened = runner.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture
def page(browser, served):
    """A fresh tab with the page in it; whatever it asked of others is an error."""
    tab = browser.new_page()
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.set_default_timeout(WAIT)
    tab.goto(served.url)
    tab.wait_for_selector("#generate")
    yield tab
    tab.close()
    strangers = [url for url in asked if not url.startswith((served.url, "data:", "blob:"))]
    assert not strangers


def make(tab, prompts: str, question: str = "") -> None:
    tab.fill("#prompts textarea", prompts)
    tab.fill("#question textarea", question)
    tab.click("#generate")


def wait_for(tab, place: str, text: str) -> str:
    playwright.expect(tab.locator(place)).to_contain_text(re.compile(text), timeout=WAIT)
    return tab.inner_text(place)


def answers(tab) -> tuple[str, str]:
    """Both answers, when they are there."""
    for place in ("#base textarea", "#adapted textarea"):
        playwright.expect(tab.locator(place)).not_to_have_value("", timeout=WAIT)
    return tab.input_value("#base textarea"), tab.input_value("#adapted textarea")


def assert_all_whole(store: Path) -> None:
    for folder in store.iterdir():
        if folder.is_dir() and not folder.name.startswith("."):
            names = {file.name for file in folder.iterdir()}
            assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors"}, folder


def test_prompts_become_an_adapter_that_can_be_seen_asked_and_taken_away(page, served, tmp_path):
    make(page, "French word for house?\n\nTranslate to French: bread\n", "say ab")
    words = wait_for(page, "#made", r"from 2 prompts: 448 parameters.*at strength 1\.")
    near = wait_for(page, "#near", "French[^a-z]*sums")
    assert 0.3 < float(re.search(r"French\s+(-?[\d.]+)", near)[1]) <= 1
    picture = page.locator("#picture img")
    picture.wait_for()
    assert page.evaluate("document.querySelector('#picture img').naturalWidth") > 500
    base, adapted = answers(page)
    assert base != adapted
    with page.expect_download() as event:
        page.click("#download")
    archive = tmp_path / "adapter.zip"
    event.value.save_as(archive)
    name = re.search(r"\b[0-9a-f]{16}\b", words)[0]
    assert event.value.suggested_filename == f"{name}.zip"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(served.zoo.model)
    PeftModel.from_pretrained(model, str(tmp_path / name))
    assert (served.store / name).is_dir()


def test_the_slider_changes_the_adapter_and_its_answer(page):
    make(page, "Add 1 and 2.", "say cd")
    whole = wait_for(page, "#made", "at strength 1")
    base, adapted = answers(page)
    assert base != adapted
    number = page.locator("#strength input[type=number]")
    number.fill("0")
    number.blur()
    none = wait_for(page, "#made", r"‖ΔW‖ 0 at strength 0\.")
    assert whole.split()[1] != none.split()[1]
    playwright.expect(page.locator("#adapted textarea")).to_have_value(base, timeout=WAIT)
    handle = page.locator("#strength input[type=range]").bounding_box()
    page.mouse.click(handle["x"] + handle["width"] * 0.75, handle["y"] + handle["height"] / 2)
    wait_for(page, "#made", r"at strength 1\.5\.")


@pytest.mark.parametrize(
    ("prompts", "button", "sentence"),
    [
        (" \n ", "#generate", "There is no prompt; write at least one"),
        ("a\n" * 1001, "#generate", "These are 1,001 prompts"),
        ("Add 1 and 2.", "#ask", "There is no adapter yet; write prompts and make one."),
    ],
)
def test_bad_input_is_a_sentence_on_the_page(page, served, prompts, button, sentence):
    page.fill("#prompts textarea", prompts)
    page.click(button)
    playwright.expect(page.get_by_text(sentence)).to_be_visible(timeout=WAIT)
    assert_all_whole(served.store)


def test_a_question_too_long_or_missing_is_a_sentence_and_the_adapter_stays(page):
    make(page, "Add 1 and 2.")
    wait_for(page, "#made", "at strength 1")
    page.click("#ask")
    playwright.expect(page.get_by_text("There is no question; write one.")).to_be_visible(timeout=WAIT)
    page.fill("#question textarea", "a" * 300)
    page.click("#ask")
    playwright.expect(page.get_by_text("and 192 are read; shorten it.")).to_be_visible(timeout=WAIT)
    page.fill("#question textarea", "say ef")
    page.click("#ask")
    assert all(answers(page))


def test_tabs_closed_in_the_middle_leave_whole_adapters_and_a_living_server(browser, page, served):
    for number in range(4):
        tab = browser.new_page()
        tab.goto(served.url)
        tab.wait_for_selector("#generate")
        make(tab, f"Closed in the middle, number {number}", "say gh")
        tab.wait_for_timeout(40 * number)
        tab.close()
        assert_all_whole(served.store)
    make(page, "And after all that?", "say ab")
    wait_for(page, "#made", "at strength 1")
    assert answers(page)
    assert served.process.poll() is None
    assert_all_whole(served.store)


def test_files_of_the_machine_are_not_served(served):
    for path in ("/etc/passwd", served.root / "model" / "generator.safetensors", served.log):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{served.url}gradio_api/file={path}")
        assert refused.value.code in (403, 404)


def test_a_click_before_the_encoder_is_there_gets_its_adapter(browser, zoo, tmp_path):
    zoo.bundle.save(tmp_path / "model" / "generator.safetensors")
    with command(GATED, tmp_path) as started:
        tab = browser.new_page()
        tab.goto(started.url)
        make(tab, "Add 1 and 2.", "say ab")
        wait_for(tab, "#status", r"The encoder of prompts \(all-MiniLM-L6-v2\) is being loaded")
        tab.wait_for_timeout(1500)
        assert tab.inner_text("#base textarea") == ""
        (tmp_path / "go").touch()
        wait_for(tab, "#made", "from 1 prompt: 448 parameters")
        assert all(answers(tab))
        wait_for(tab, "#status", r" is ready\.")
        tab.close()


@pytest.mark.parametrize(("is_wrong", "code", "sentence"), [(True, 1, "is not the one of training"), (False, 130, "")])
def test_a_command_that_ends_before_the_encoder_is_there_leaves_no_click_waiting(
    browser, zoo, tmp_path, is_wrong, code, sentence
):
    replace(zoo.bundle, text_encoder_fingerprint="0" * 32).save(tmp_path / "model" / "generator.safetensors")
    with command(GATED, tmp_path) as started:
        tab = browser.new_page()
        tab.goto(started.url)
        make(tab, "Add 1 and 2.")
        tab.wait_for_timeout(1000)
        if is_wrong:
            (tmp_path / "go").touch()
            started.process.wait(60)
        else:
            started.process.terminate()
            started.process.wait(30)
        tab.close()
    assert started.process.returncode == code
    assert sentence in started.log.read_text()
    assert "Traceback" not in started.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_that_is_lost_while_things_are_loaded_still_ends_the_command(zoo, tmp_path, number):
    zoo.bundle.save(tmp_path / "model" / "generator.safetensors")
    with command(DEAF, tmp_path) as started:
        end = time.monotonic() + 60
        while not (tmp_path / "loading").exists():
            assert time.monotonic() < end, started.log.read_text()
            time.sleep(0.1)
        started.process.send_signal(number)
        assert started.process.wait(60) == 130, started.log.read_text()
    assert (tmp_path / "go").exists()
