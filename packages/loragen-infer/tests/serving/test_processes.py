"""The command serve as processes on one store: draining, killing, and a bundle that is swapped meanwhile."""

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from lora_tokenizer import read_adapter

pytest.importorskip("litserve")


def start(model, store, *words):
    command = [sys.executable, "-m", "loragen_infer.cli", "serve", "--model", model, "--store", store, "--port", 0]
    process = subprocess.Popen([*map(str, command), *words], stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), line
    return process, line.split()[0]


def ask(url, prompt):
    body = json.dumps({"prompts": [prompt]}).encode()
    request = urllib.request.Request(f"{url}/adapters", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_two_servers_on_one_store_one_drains_and_one_is_killed(zoo, tmp_path):
    model, store = tmp_path / "generator.safetensors", tmp_path / "adapters"
    shutil.copy(zoo.file, model)
    with ThreadPoolExecutor(2) as pool:
        (first, one), (second, two) = pool.map(
            lambda words: start(model, store, *words), [("--batch-timeout", "1"), ("--max-batch-size", "4")]
        )
    model.write_bytes(b"something else")  # in place, under the running servers
    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(ask, url, f"say {number}") for number in range(8) for url in (one, two)]
        time.sleep(0.3)
        first.send_signal(signal.SIGTERM)
        answers = [future.result() for future in waiting]
    assert sum(answer["is_new"] for answer in answers) == 8
    assert len({answer["id"] for answer in answers}) == 8
    assert first.wait(timeout=30) == 0
    with pytest.raises(urllib.error.URLError):
        ask(one, "too late")
    finished = []

    def keep_asking(name):
        number = 0
        while True:
            try:
                finished.append(ask(two, f"load {name} {number}"))
            except OSError:
                return
            number += 1

    with ThreadPoolExecutor(8) as pool:
        for name in range(8):
            pool.submit(keep_asking, name)
        while len(finished) < 20:
            assert second.poll() is None
            time.sleep(0.01)
        second.kill()
    second.wait()
    for answer in finished:
        read_adapter(answer["path"])
    for path in store.iterdir():
        if not path.name.startswith("."):
            read_adapter(path)


def test_a_server_that_is_told_to_end_before_it_listens_to_signals_ends(zoo, tmp_path):
    script = (
        "import os, signal, sys\n"
        "from loragen_infer.serving.config import ServeConfig\n"
        "from loragen_infer.serving.run import run_serve\n"
        "config = ServeConfig(model=sys.argv[1], store=sys.argv[2], port=0)\n"
        "run_serve(config, say=lambda line: os.kill(os.getpid(), signal.SIGTERM))\n"
    )
    words = [sys.executable, "-c", script, str(zoo.experiment), str(tmp_path / "adapters")]
    assert subprocess.run(words, timeout=45).returncode == 0
