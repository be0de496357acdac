"""Thousands of broken and hostile files: each ends in a sentence that names the file, or in a correct adapter.

All files are made here from seeds: whole files are truncated, flipped, overwritten, given wrong headers and shapes.
No code in them runs, nothing is written, and memory stays bounded.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_tokenizer import LoraAdapter, LoraTokenizerError, TokenLayout, read_adapter
from safetensors.torch import save

NAMES = [
    "",
    "../../x",
    "/etc/passwd",
    "a\0b",
    "x" * 5000,
    "lora_A",
    ".lora_A.weight",
    "base_model.model..lora_A.weight",
]
MEMORY_BYTES = 512 << 20


@pytest.fixture(scope="module")
def originals(make_adapter: Any) -> dict[str, bytes]:
    torch.manual_seed(3)
    adapter = make_adapter(dims={"q": (6, 5), "v": (6, 3)}, r=2)
    tensors = dict(adapter.tensors)
    bare, lightning = BytesIO(), BytesIO()
    torch.save(tensors, bare)
    state = {f"model.{name}".replace(".weight", ".default.weight"): tensor for name, tensor in tensors.items()}
    hyper = {"r": 2, "lora_alpha": 4, "path": Path("x")}
    torch.save({"state_dict": state, "hyper_parameters": hyper, "optimizer_states": [{"lr": 0.1}]}, lightning)
    return {".safetensors": save(tensors), ".pt": bare.getvalue(), ".ckpt": lightning.getvalue()}


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """One to four random wounds."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        at = rng.randrange(len(data))
        match rng.randrange(8):
            case 0:
                del data[at:]
            case 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                data[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
            case 3:
                data[at : at + rng.randint(1, 64)] = rng.randbytes(rng.randint(0, 64))
            case 4:
                del data[at : at + rng.randint(1, 32)]
            case 5:
                data[at:at] = data[: rng.randint(1, 256)]
            case 6:
                data[at : at + 1] = rng.choice([b"R", b"(", b"t", b".", b"Q", b"b", b"\x81", b"2", b"0", b"j", b"X"])
            case 7:
                digits = [index for index, byte in enumerate(data[:4000]) if 48 <= byte <= 57] or [at]
                data[rng.choice(digits)] = rng.choice(b"0123456789-")
    return bytes(data)


def read_or_refuse(path: Path) -> LoraAdapter | str:
    """The adapter, checked for sense, or the sentence of the refusal; anything else fails the test."""
    try:
        adapter = read_adapter(path, config={"lora_alpha": 4})
    except LoraTokenizerError as error:
        sentence = str(error)
        assert path.name in sentence
        assert "\n" not in sentence.replace(str(path), "")
        assert len(sentence) < 2000
        return sentence
    for name, tensor in adapter.tensors.items():
        assert torch.isfinite(tensor).all(), name
    layout = TokenLayout.from_adapter(adapter, token_dim=8, max_tokens="auto")
    assert torch.equal(layout.encode(layout.decode(layout.encode(adapter))), layout.encode(adapter))
    return adapter


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """Half a gigabyte of address space beyond what is in use: a file that makes us allocate more fails the test."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".ckpt"])
def test_mutated_files(ending: str, originals: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / f"x{ending}"
    read, refused = 0, set()
    for seed in range(2000):
        path.write_bytes(mutate(originals[ending], random.Random(seed)))
        outcome = read_or_refuse(path)
        if isinstance(outcome, str):
            refused.add(outcome[-30:])
        else:
            read += 1
    assert sorted(tmp_path.iterdir()) == [path], "nothing is written"
    assert 0 < read < 2000
    assert len(refused) > 5, "the wounds reach different checks"


def with_header(entries: dict[str, Any] | str, data: bytes = b"\0" * 64) -> bytes:
    text = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    return struct.pack("<Q", len(text)) + text + data


A, B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"


def entry(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def hostile_headers() -> Iterator[bytes]:
    good = {A: entry([2, 4], 0, 32), B: entry([4, 2], 32, 64)}
    for shape in ([10**18, 10**18], [2**62, 4], [-2, -4], [2, 4.0], [True, 8], [], [1] * 10_000, [0, 4], ["2", 4]):
        yield with_header(good | {A: entry(shape, 0, 32)})
    for begin, end in ((0, 2**63), (32, 0), (-32, 0), (0, 64), (60, 92), (0, 0), (1, 33)):
        yield with_header(good | {A: entry([2, 4], begin, end)})
    for dtype in ("I8", "F8_E4M3", "", "X" * 10_000):
        yield with_header(good | {A: entry([2, 4], 0, 32, dtype)})
    for name in NAMES:
        yield with_header({name: entry([2, 4], 0, 32), B: entry([4, 2], 32, 64)})
    yield with_header({A: entry([2, 4], 0, 32), "other": entry([8], 32, 64)})
    yield with_header({})
    yield with_header("[" * 200_000)
    yield with_header('{"a":' * 100_000)
    yield with_header(json.dumps(good)[:-1] + f', "{A}": {json.dumps(entry([2, 4], 32, 64))}}}')
    yield with_header('{"__metadata__": [1]}')
    yield with_header(good, data=b"\0" * 63)
    yield with_header(good, data=b"\0" * 65)
    yield with_header(good, data=struct.pack("<f", float("nan")) + b"\0" * 60)
    yield struct.pack("<Q", 2**64 - 1) + b"{}"
    yield struct.pack("<Q", 10**9) + b"{}"
    yield b""
    yield b"\0" * 7


def test_hostile_safetensors_headers(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for index, raw in enumerate(hostile_headers()):
        path.write_bytes(raw)
        assert isinstance(read_or_refuse(path), str), index


def torch_zip(stream: bytes, storages: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("x/data.pkl", stream)
        archive.writestr("x/byteorder", "little")
        for name, data in (storages or {"0": b"\0" * 32}).items():
            archive.writestr(f"x/data/{name}", data)
    return out.getvalue()


class Call:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def tensor_stream(
    shape: tuple[int, ...], stride: tuple[int, ...], count: int, offset: int = 0, key: str = "0"
) -> bytes:
    """{A: tensor} as torch.save writes it."""

    class Pickler(pickle._Pickler):  # the pure Python one lets storages be made up
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", count) if value is marker else None

    marker = Call(print)
    out = BytesIO()
    rebuild = Call(torch._utils._rebuild_tensor_v2, marker, offset, shape, stride, False, {})
    Pickler(out, 2).dump({A: rebuild})
    return out.getvalue()


def hostile_pickles(ran: Path) -> Iterator[bytes]:
    for call in (
        Call(os.system, f"touch {ran}"),
        Call(eval, f"open({str(ran)!r}, 'w')"),
        Call(exec, f"open({str(ran)!r}, 'w')"),
        Call(bytearray, 10**12),
        Call(torch.zeros, 10**12),
    ):
        yield torch_zip(pickle.dumps(call, 2))
        yield torch_zip(pickle.dumps({A: call}, 2))
        yield torch_zip(pickle.dumps({"state_dict": {A: call, B: call}}, 4))
    for shape, stride, count, offset in (
        ((10**9, 10**9), (0, 0), 8, 0),
        ((2, 4), (4, 1), 10**12, 0),
        ((2, 4), (4, 1), 8, 4),
        ((2, 4), (2**61, 1), 8, 0),
        ((2, 4), (-4, 1), 8, 8),
        ((1000, 1000), (0, 1), 8, 0),
        ((1,) * 100_000, (1,) * 100_000, 8, 0),
    ):
        yield torch_zip(tensor_stream(shape, stride, count, offset))
    yield torch_zip(tensor_stream((2, 4), (4, 1), 8, key="../../etc/passwd"))
    yield torch_zip(tensor_stream((2, 4), (4, 1), 8))
    yield torch_zip(b"\x80\x02r\xff\xff\xff\xff.")
    yield torch_zip(b"\x80\x02Nr\xff\xff\xff\xff.")
    yield torch_zip(b"\x80\x02" + b"(" * 1_000_000 + b".")
    yield torch_zip(b"\x80\x02" + b"]" + b"2\x85" * 100_000 + b".")
    yield torch_zip(b"\x80\x02}(" + b")" + b"2\x86" * 60 + b"Nu.")
    yield torch_zip(b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b".")
    yield torch_zip(b"cposix\nsystem\n(S'touch x'\ntR.")
    for filler, size in ((b"(", 15 << 20), (b"]", 2 << 20), (b"}", 2 << 20), (b"\x8f", 2 << 20), (b"N\x85", 2 << 20)):
        yield torch_zip(b"\x80\x02" + filler * (size // len(filler)) + b".")
    yield torch_zip(b"N" * (17 << 20))
    yield torch_zip(b"")
    yield torch_zip(b"\0" * (32 << 20), method=zipfile.ZIP_DEFLATED)
    yield pickle.dumps(Call(os.system, f"touch {ran}"))
    yield b"PK\x05\x06" + b"\xff" * 18
    yield b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    yield b""


@pytest.mark.usefixtures("bounded_memory")
def test_hostile_torch_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for index, raw in enumerate(hostile_pickles(tmp_path / "ran")):
        path.write_bytes(raw)
        assert isinstance(read_or_refuse(path), str), index
    assert sorted(tmp_path.iterdir()) == [path], "no code ran and nothing was written"


def bombs() -> Iterator[tuple[str, bytes]]:
    """Pickles that would cost a plain reader all the memory or all the time, or that it should not follow."""
    memo = struct.pack("<I", 2**32 - 1)
    yield "a memo slot out of reach", b"\x80\x02Nr" + memo + b"j" + memo + b"."
    yield "many memo slots", b"\x80\x02" + b"".join(b"Nr" + struct.pack("<I", n * 4000) for n in range(10**6)) + b"."
    yield "a key to hash for ever", b"\x80\x02}(" + b")" + b"2\x86" * 10_000 + b"Nu."
    yield "a key deeper than the stack", b"\x80\x02}(" + b")" + b"\x85" * (4 << 20) + b"Nu."
    yield "a set to hash for ever", b"\x80\x04\x8f(" + b")" + b"2\x86" * 10_000 + b"\x90."
    yield "a frozen set of deep tuples", b"\x80\x04(" + b")" + b"\x85" * (1 << 20) + b"\x91."
    yield "text of 2**62 bytes", b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x."
    yield "bytes of 2**40 bytes", b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x."
    yield "a byte array of 2**40 bytes", b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x."
    yield "a frame of 2**60 bytes", b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N."
    yield "a number of 2**31 bytes", b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x."
    yield "a number of a million digits", b"I" + b"9" * 10**6 + b"\n."
    yield "a number of negative size", b"\x80\x02\x8b" + struct.pack("<i", -5) + b"."
    yield "a class from the extension registry", b"\x80\x02\x82\x01."
    yield "a buffer outside of the stream", b"\x80\x05\x97."
    yield "an old style instance", b"(cos\nsystem\no."
    yield "an old style class", b"(ios\nsystem\n."
    yield "nothing to end", b"\x80\x02N"


def hostile_settings() -> Iterator[tuple[str, Any, str]]:
    """Hyper-parameters that a checkpoint can really hold, and what is said of them (nothing where harmless)."""
    base = {"lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    itself: dict[str, Any] = {"x": 1}
    itself["self"] = itself
    yield "themselves", itself, "lora_alpha is missing"
    yield "themselves and an alpha", itself | {"lora": {"lora_alpha": 8, "parent": itself}}, ""
    around: list[Any] = []
    around.append(around)
    for name in ("target_modules", "layers_to_transform", "rank_pattern", "use_dora", "modules_to_save"):
        yield f"{name} in itself", base | {name: around}, name
        yield f"{name} that holds all", base | {name: itself}, name
    twice: list[Any] = []
    for _ in range(100):
        twice = [twice, twice]
    for name in ("target_modules", "alpha_pattern", "task_type", "r", "bias", "peft_type"):
        yield f"{name} that unfolds", base | {name: twice}, "" if name in ("bias", "peft_type") else name
    keys: Any = ()
    for _ in range(20):  # as many as this process can hash while it makes the file
        keys = (keys, keys)
    yield "a nested key", base | {"rank_pattern": {keys: 3}}, "rank_pattern"
    for name in ("r", "lora_alpha", "rank_pattern", "layers_to_transform"):
        huge: Any = 10**5000
        yield f"a huge {name}", base | {name: {"q": huge} if name == "rank_pattern" else huge}, name


BOUNDED = """
import resource, sys
from pathlib import Path
from lora_tokenizer import LoraTokenizerError, read_adapter
import torch
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), -1))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_adapter(path)
        print("read")
    except LoraTokenizerError as error:
        print(str(error).replace("\\n", " "))
"""


def test_bombs_are_refused_within_half_a_gigabyte(tmp_path: Path, make_adapter: Any) -> None:
    expected = []
    for number, (what, stream) in enumerate(bombs()):
        (tmp_path / f"{number:03}.pt").write_bytes(torch_zip(stream))
        expected.append((what, f"{number:03}.pt"))
    for number, (what, settings, said) in enumerate(hostile_settings(), start=len(expected)):
        checkpoint = {"state_dict": dict(make_adapter().tensors), "hyper_parameters": settings}
        torch.save(checkpoint, tmp_path / f"{number:03}.ckpt")
        expected.append((what, said or "read"))
    command = [sys.executable, "-c", BOUNDED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for (what, said), line in zip(expected, done.stdout.splitlines(), strict=True):
        assert said in line, (what, line)
        assert len(line) < 1000, what


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "[]",
        "null",
        "{}",
        '{"peft_type": "IA3"}',
        '{"r": "8"}',
        '{"r": 1e400}',
        '{"r": -1}',
        '{"r": 99999999999999999999}',
        f'{{"lora_alpha": 1{"0" * 400}}}',
        f'{{"lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "alpha_pattern": {{"q_proj": 1{"0" * 400}}}}}',
        '{"rank_pattern": 3}',
        '{"rank_pattern": {"(": 3}}',
        '{"alpha_pattern": {"(.*)*x": 3}}',
        '{"target_modules": {"a": 1}}',
        '{"target_modules": [1]}',
        '{"layers_to_transform": ["x"]}',
        '{"use_dora": "yes"}',
        '{"use_dora": true}',
        '{"modules_to_save": ["lm_head"]}',
        '{"a_new_kind_of_lora": {"x": 1}}',
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
)
def test_hostile_configs(text: str, tmp_path: Path, make_adapter: Any) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(save(dict(make_adapter().tensors)))
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(LoraTokenizerError) as caught:
        read_adapter(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_mutated_configs(tmp_path: Path, peft_folder: Path) -> None:
    path = peft_folder / "adapter_config.json"
    original = path.read_bytes()
    for seed in range(500):
        path.write_bytes(mutate(original, random.Random(seed)))
        with contextlib.suppress(LoraTokenizerError):
            read_adapter(peft_folder)


def test_odd_paths(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.pt").mkdir()
    for path in (
        tmp_path,
        tmp_path / "pipe.safetensors",
        tmp_path / "folder.pt",
        tmp_path / "x.txt",
        Path("/dev/null"),
        Path("x" * 5000),
    ):
        with pytest.raises(LoraTokenizerError):
            read_adapter(path)
