"""The package works with nothing but what it declares: torch, safetensors, numpy and filelock."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ALONE = """
import sys
for name in ("peft", "transformers", "lightning", "pytorch_lightning", "accelerate", "huggingface_hub", "hypothesis"):
    sys.modules[name] = None  # importing it fails
from pathlib import Path
import lora_tokenizer as lt
from lora_tokenizer.__main__ import main
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
adapter = lt.read_adapter(folder)
for name in lt.__all__:
    getattr(lt, name)
layout = lt.TokenLayout.from_adapter(adapter, token_dim=8, max_tokens="auto", canonical="svd")
stats = lt.TokenStats.from_tokens(lt.TokenCache(out / "cache").get([folder], layout))
assert stats.count == 1
assert lt.check_round_trip(folder, max_tokens="auto").ok
assert lt.same_bits(lt.read_adapter(adapter.save_pretrained(out / "copy")), adapter)
assert main(["inspect", str(folder)]) == 0
"""


def test_everything_runs_without_peft_and_transformers(peft_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ALONE, str(peft_folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "model.layers.0.self_attn.q_proj" in done.stdout


def test_what_is_declared() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert [name.partition(">")[0] for name in project["dependencies"]] == [
        "filelock",
        "lazy-loader",
        "numpy",
        "safetensors",
        "torch",
    ]
