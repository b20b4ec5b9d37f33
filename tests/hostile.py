"""Hostile inputs, each made from a working folder of a small run: what somebody might hand to this project.

A case spoils one thing and names the command that meets it. ``random`` decides everything, so that a number
is all that is needed to have a case again.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

TRAINING = Path("results/tiny/train/gun-small/seed-0")
COUNTS = Path("results/tiny/evaluate/gun-small/seed-0.npz")
SCORES = Path("results/tiny/evaluate/gun-small.json")
MANIFEST = Path("data/prepared/tiny/scenes/manifest.json")
MARK = Path("executed")
"""Exists if code of an input has run."""


@dataclass(frozen=True)
class Case:
    """A spoilt input."""

    kind: str
    what: str
    command: tuple[str, ...]
    repairable: bool = False
    """Whether the stage may do what is broken again instead of refusing it."""


class _Code:
    """Unpickled, it writes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (MARK.absolute(),)


WRONG: tuple[Any, ...] = (
    None, True, -1, 0.5, 10**30, float("nan"), float("inf"), "", "x" * 5000, "../../etc/passwd", "\0",
    "<script>", [], {}, [[]], [None], {"a": {}}, ["a", "b", "c", "d"], -(2**63), "1e400",
)  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested lists and mappings."""
    keys = range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
    return [place for key in keys for place in [(*path, key), *_places(value[key], (*path, key))]]


def _spoil(value: Any, chance: random.Random) -> str:
    """Puts something wrong at a random place; what, in words."""
    place = chance.choice(_places(value))
    for key in place[:-1]:
        value = value[key]
    if chance.random() < 0.2 and isinstance(value, dict):
        del value[place[-1]]
        return f"without {'.'.join(map(str, place))}"
    wrong = chance.choice(WRONG)
    value[place[-1]] = wrong
    return f"{'.'.join(map(str, place))} = {str(wrong)[:20]!r}"


def _spoil_bytes(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """A file that a disk or a connection has broken."""
    ways: list[tuple[Callable[[], bytes], str]] = [
        (lambda: b"", "empty"),
        (lambda: content[: chance.randrange(1, len(content))], "cut off"),
        (lambda: bytes(chance.randrange(256) for _ in range(300)), "noise"),
        (lambda: b"[" * 200_000, "200 000 brackets"),
        (lambda: b'{"a": ' + b"9" * 10_000 + b"}", "a number of 10 000 digits"),
        (lambda: pickle.dumps(_Code()), "a pickle with code"),
    ]
    make, what = chance.choice(ways)
    return make(), what


def _params(chance: random.Random) -> Case:
    path = Path("params.yaml")
    texts = {
        "aliases by the million": "a: &a [x, x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(20)
        ),
        "nested 100 000 levels deep": "a: " + "[" * 100_000,
        "nested mappings": "".join(" " * i + "a:\n" for i in range(3000)),
        "code": "a: !!python/object/apply:os.system ['touch executed']\n",
        "a day of no calendar": "profile: 2020-13-45\n",
        "a number of 10 000 digits": f"profile: {'9' * 10_000}\n",
        "a list as a key": "? [a, b]\n: c\n",
        "a mapping as a key": "? {a: b}\n: c\n",
        "no YAML": "a: [b\nc: }\n",
        "noise": bytes(chance.randrange(32, 127) for _ in range(200)).decode(),
        "5 million lines": "- a\n" * 5_000_000,
        "a null character": "profile: a\0b\n",
        "only a word": "hello\n",
        "merge keys": "a: &a {b: c}\nd: {<<: *a}\n",
    }  # fmt: skip
    if chance.random() < 0.3:
        what = chance.choice(list(texts))
        path.write_text(texts[what])
    else:
        values = yaml.safe_load(path.read_text())
        what = _spoil(values, chance)
        path.write_text(yaml.safe_dump(values))
    return Case("params", what, (chance.choice(["prepare", "train", "tables"]),))


def _manifest(chance: random.Random) -> Case:
    if chance.random() < 0.3:
        content, what = _spoil_bytes(MANIFEST.read_bytes(), chance)
        MANIFEST.write_bytes(content)
    else:
        manifest = json.loads(MANIFEST.read_text())
        what = _spoil(manifest, chance)
        MANIFEST.write_text(json.dumps(manifest))
    shutil.rmtree(TRAINING.parent)
    return Case("manifest", what, ("train", "gun-small"))


def _png(width: int, height: int, extra: bytes = b"") -> bytes:
    """A small file that says that it is a large picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(10**7), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _use_folders() -> None:
    """Has the profile read pictures from plain folders."""
    values = yaml.safe_load(Path("params.yaml").read_text())
    profile = values["profiles"]["tiny"]
    split = {"images": "images", "labels": "labels"}
    classes = {"road": [0, 0, 0], "car": [255, 0, 0]}
    options = {"root": "mine", "train": split, "val": split, "classes": classes, "ignored": [255]}
    profile |= {"datasets": {"folders": options}, "stand_in": "folders"}
    # Through JSON: without aliases, which would be refused before any picture is read.
    Path("params.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    for kind, shape in (("images", (20, 30, 3)), ("labels", (20, 30))):
        (Path("mine") / kind).mkdir(parents=True)
        for name in "ab":
            Image.fromarray(np.zeros(shape, np.uint8)).save(Path("mine") / kind / f"{name}.png")


def _picture(chance: random.Random) -> Case:
    _use_folders()
    kind = chance.choice(["images", "labels"])
    path = Path("mine") / kind / f"{chance.choice('ab')}.png"
    text = zlib.compress(bytes(2 * 10**8), 9)
    contents: dict[str, bytes | np.ndarray | None] = {
        "2 000 000 x 2 000 000 pixels": _png(2_000_000, 2_000_000),
        "20 000 x 20 000 pixels": _png(20_000, 20_000),
        "8000 x 5000 pixels": _png(5000, 8000),
        "3000 x 3000 pixels of which most are missing": _png(3000, 3000),
        "another size": np.zeros((7, 9, 3) if kind == "images" else (7, 9), np.uint8),
        "a text that unpacks to 200 MB": _png(9, 9, struct.pack(">I", len(text) + 3) + b"zTXtA\0\0" + text),
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n(executed) (w) file\n",
        "a folder": None,
        "illegal values": np.full((20, 30), 77, np.uint8) if kind == "labels" else b"P6 30 20 255\n",
        "32 bits": np.full((20, 30), 70_000, np.int32),
    }
    if chance.random() < 0.3:
        content, what = _spoil_bytes(path.read_bytes(), chance)
        path.write_bytes(content)
        return Case(kind, what, ("prepare",))
    what = chance.choice(list(contents))
    found = contents[what]
    path.unlink()
    if found is None:
        path.mkdir()
    elif isinstance(found, bytes):
        path.write_bytes(found)
    else:
        Image.fromarray(found).save(path, format="TIFF" if found.dtype == np.int32 else "PNG")
    return Case(kind, what, ("prepare",))


def _with_digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest() + content


def _checkpoint(chance: random.Random) -> Case:
    """A checkpoint, or released weights, that somebody made on purpose: its checksum is right."""
    shutil.copy("kept/checkpoint.pt", TRAINING / "checkpoint.pt")
    (TRAINING / "run.json").unlink()
    path = TRAINING / "checkpoint.pt"
    state = torch.load(io.BytesIO(path.read_bytes()[32:]), weights_only=True)
    way = chance.choice(["code", "key", "compressed", "bytes", "other", "weights", "pth"])
    buffer = io.BytesIO()
    if way == "code":
        torch.save(state | {"step": _Code()}, buffer)
    elif way == "key":
        del state[chance.choice(list(state))]
        torch.save(state, buffer)
    elif way == "compressed":
        torch.save(state, buffer)
        packed = io.BytesIO()
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.infolist():
                new.writestr(entry.filename, bytes(10**8) if "/data/" in entry.filename else old.read(entry))
                if "/data/" in entry.filename:
                    break
        buffer = packed
    elif way == "other":
        key = chance.choice([key for key in state if key != "digest"])
        state[key] = chance.choice(WRONG)
        torch.save(state, buffer)
        way = f"{key} = {str(state[key])[:20]!r}"
    elif way in ("weights", "pth"):
        path.unlink()
        return _weights(chance, way)
    if way == "bytes":
        content, way = _spoil_bytes(path.read_bytes(), chance)
        path.write_bytes(content)
    else:
        path.write_bytes(_with_digest(buffer.getvalue()))
    return Case("checkpoint", way, ("train", "gun-small"), repairable=True)


def _weights(chance: random.Random, way: str) -> Case:
    """ImageNet weights of a backbone that do harm or do not fit."""
    values = yaml.safe_load(Path("params.yaml").read_text())
    path = Path("resnet18.pth" if way == "pth" else "resnet18.safetensors")
    values["profiles"]["tiny"]["recipe"]["pretrained"] = str(path)
    Path("params.yaml").write_text(yaml.safe_dump(values))
    what = chance.choice(["code", "noise", "a huge header", "other tensors"])
    if what == "code":
        torch.save({"conv1.weight": _Code()}, path)
    elif what == "noise":
        path.write_bytes(bytes(chance.randrange(256) for _ in range(500)))
    elif what == "a huge header":
        path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    else:
        torch.save({"a": torch.zeros(3)}, path)
    return Case("checkpoint", f"{path}: {what}", ("train", "spgnet-small", "--seeds", "9"))


def _result(chance: random.Random) -> Case:
    way = chance.choice(
        ["counts", "bomb", "shape", "scores", "scores", "weights", "run", "tables", "published"]
    )
    if way == "counts":
        content, what = _spoil_bytes(COUNTS.read_bytes(), chance)
        COUNTS.write_bytes(content)
        return Case("result", f"counts: {what}", ("evaluate", "gun-small"), repairable=True)
    if way == "bomb":
        with (
            zipfile.ZipFile(COUNTS, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("digest.npy", "w") as file,
        ):
            for _ in range(400):
                file.write(bytes(10**6))
        return Case("result", "counts that unpack to 400 MB", ("evaluate", "gun-small"), repairable=True)
    if way == "shape":
        header = (
            b"\x93NUMPY\x01\x00v\x00"
            + f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({10**13},), }}".encode()
        )
        with zipfile.ZipFile(COUNTS, "w") as archive:
            archive.writestr("digest.npy", header.ljust(128) + bytes(80))
        return Case(
            "result", "counts of 10 000 000 000 000 numbers", ("evaluate", "gun-small"), repairable=True
        )
    if way == "scores":
        if chance.random() < 0.5:
            content, what = _spoil_bytes(SCORES.read_bytes(), chance)
            SCORES.write_bytes(content)
        else:
            scores = json.loads(SCORES.read_text())
            what = _spoil(scores, chance)
            SCORES.write_text(json.dumps(scores))
        command = chance.choice(["evaluate", "tables"])
        return Case("result", f"scores: {what}", (command,), repairable=True)
    if way == "tables":
        path = Path("reports/tables/tables.json")
        content, what = chance.choice(
            [(b"[1]", "a list"), (b'{"../../params": "x"}', "another folder"), (b"{", "broken")]
        )
        path.write_bytes(content)
        return Case("result", f"tables: {what}", ("report", "--again"))
    if way == "published":
        path = Path("results/published/gun.csv")
        text = path.read_text()
        what, text = chance.choice([
            ("a value that is no number", text.replace(text.splitlines()[1].split(",")[4], "much")),
            ("no columns", "x\n1\n"), ("noise", "\0" * 500), ("empty", ""),
            ("nothing but quotes", '"' * 999), ("a million columns", "," * 10**6),
        ])  # fmt: skip
        path.write_text(text)
        return Case("result", f"published: {what}", ("tables",))
    path = TRAINING / ("weights.safetensors" if way == "weights" else "run.json")
    content, what = _spoil_bytes(path.read_bytes(), chance)
    path.write_bytes(content)
    shutil.rmtree(COUNTS.parent)
    return Case("result", f"{path.name}: {what}", ("evaluate", "gun-small"), repairable=way == "run")


MAKERS = (_params, _params, _manifest, _picture, _picture, _checkpoint, _result)
"""Of seven cases two are settings, two are pictures or labels."""


def make(number: int) -> Case:
    """Spoils something in the present folder."""
    chance = random.Random(number)
    return MAKERS[number % len(MAKERS)](chance)
