"""A folder with a user's files, and the code blocks of the README to run in it."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent


def readme_block(marker: str) -> str:
    """The code block of the README after the comment ``<!-- marker -->``."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", readme, flags=re.DOTALL)
    assert found is not None, f"README.md has no code block marked {marker}"
    return found[1]


@dataclass(frozen=True)
class Workspace:
    """A folder with a user's files."""

    path: Path

    @property
    def experiment(self) -> Path:
        """The first experiment folder: the one that the quick start made."""
        return min((self.path / "experiments").iterdir())

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the folder."""
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            command, shell=True, cwd=self.path, env=environment, capture_output=True, text=True, check=False
        )

    def change(self, config: str, **changes: Any) -> None:
        """Set the keys ``changes`` (``section__key``) in the file ``config`` of config/."""
        path = self.path / "config" / config
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for key, value in changes.items():
            *sections, last = key.split("__")
            place = content
            for section in sections:
                place = place[section]
            place[last] = value
        path.write_text(yaml.safe_dump(content), encoding="utf-8")


def write_tasks(folder: Path) -> None:
    """Write three small tasks of 28 samples each."""
    folder.mkdir()
    words = [
        "hot",
        "cold",
        "big",
        "small",
        "fast",
        "slow",
        "old",
        "new",
        "up",
        "down",
        "left",
        "right",
        "in",
        "out",
        "day",
        "night",
        "yes",
        "no",
        "top",
        "low",
        "wet",
        "dry",
        "early",
        "late",
        "open",
        "shut",
    ]
    pairs = list(zip(words[::2], words[1::2], strict=True)) + list(zip(words[1::2], words[::2], strict=True))
    places = ["Paris France", "Rome Italy", "Cairo Egypt", "Lima Peru", "Oslo Norway", "Tokyo Japan", "Madrid Spain"]
    tasks = {
        "sums": [(f"What is {a} + {b}?", str(a + b)) for a in range(2, 9) for b in range(1, 5)],
        "capitals": [
            (f"{question} {country}?", capital)
            for capital, country in (place.split() for place in places)
            for question in ("What is the capital of", "Name the capital of", "Which is the capital of", "Capital of")
        ],
        "opposites": [(f"What is the opposite of {a}?", b) for a, b in pairs]
        + [(f"Give the opposite of {a}.", b) for a, b in pairs],
    }
    for name, samples in tasks.items():
        lines = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in samples[:28]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
