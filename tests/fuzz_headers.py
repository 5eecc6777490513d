"""Our header reader beside safetensors' own, over mutated headers.

    python tests/fuzz_headers.py [--count 1000000] [--seed 0] [--folder FOLDER]

Nothing may be accepted here that safetensors refuses, tensors that both accept have to be the same
bytes, and a refusal is one line that names the file. Prints JSON: how many headers both accepted,
how many only safetensors did and why they are refused here, and what was wrong.
"""

import argparse
import json
import random
import re
import struct
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save

from wdecomp.checkpoint import read_header
from wdecomp.errors import CheckpointError

CORPUS = [
    {
        "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.ones(4, dtype=torch.bfloat16),
        "ü/\n": torch.ones(3, 1, 2, dtype=torch.float16),
        "scalar": torch.tensor(2.0),
        "none": torch.ones(0, 7),
        "index": torch.arange(5),
        "emptied": torch.ones(3, 5, 0),
    },
    {f"model.layers.{i}.self_attn.q_proj.weight": torch.ones(2, 3) * i for i in range(3)},
    {"w": torch.zeros(2, 2)},
    {},
]
EXTREMES = [0, 1, 2**31, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64]
BYTES = b'0123456789-+.eE{}[]",:\\ \t\n/aFunltr\x00\x7f\x80\xff'
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2, 1.0, 2**53, 2**63, 2**64, "", "F32", "f32", "BF16", "F8_E4M3",
    "F4", "C64", "BOOL", [], [0], [1], [0, 0], [2, 2], [-1], [1.0], {}, {"F32": None},
    "__metadata__",
]  # fmt: skip
Seen = dict[str, tuple[str, list[int], bytes]]


def as_we_see(path: Path) -> Seen:
    """Dtype, shape and bytes of every tensor by name, by our reader."""
    blob = path.read_bytes()
    return {
        name: (t.dtype, list(t.shape), blob[t.offset : t.offset + t.nbytes])
        for name, t in read_header(path).tensors.items()
    }


def as_safetensors_sees(blob: bytes) -> Seen:
    """The same, by safetensors."""
    return {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in deserialize(blob)}


def split(blob: bytes) -> tuple[bytes, bytes]:
    """The header and the data of a file."""
    length = struct.unpack("<Q", blob[:8])[0]
    return blob[8 : 8 + length], blob[8 + length :]


def mutated(header: bytes, dice: random.Random) -> bytes:
    """A header with some small faults, in its bytes or in its structure."""
    if dice.random() < 0.5:
        return _bytewise(header, dice)
    text = _structural(json.loads(header), dice)
    return _bytewise(text, dice) if dice.random() < 0.1 else text


def _bytewise(header: bytes, dice: random.Random) -> bytes:
    changed = bytearray(header)
    edits: list[Callable[[int], None]] = [
        lambda i: changed.__setitem__(i, dice.choice(BYTES)),
        lambda i: changed.insert(i, dice.choice(BYTES)),
        lambda i: changed.__delitem__(i),
        lambda i: changed.__setitem__(slice(i, i), changed[i : i + dice.randrange(1, 60)]),
        lambda i: changed.__setitem__(slice(i, i + dice.randrange(1, 20)), b""),
        lambda i: changed.__setitem__(slice(None), _extreme(bytes(changed), i)),
    ]
    for _ in range(dice.randrange(1, 4)):
        if changed:
            dice.choice(edits)(dice.randrange(len(changed)))
    return bytes(changed)


def _extreme(text: bytes, at: int) -> bytes:
    """The first number from a position on is replaced by one at the border of an integer type."""
    extreme = str(EXTREMES[at % len(EXTREMES)]).encode()
    return text[:at] + re.sub(rb"\d+", extreme, text[at:], count=1)


def _structural(entries: dict[str, Any], dice: random.Random) -> bytes:
    pairs = list(entries.items())
    for _ in range(dice.randrange(1, 4)):
        kind = dice.randrange(8)
        i = dice.randrange(len(pairs)) if pairs else 0
        if not pairs or kind == 0:
            pairs.insert(i, (dice.choice(["a", "w", "__metadata__", "é", ""]), dice.choice(ODD)))
            continue
        name, entry = pairs[i]
        if kind == 1:
            del pairs[i]
        elif kind == 2:
            pairs.insert(dice.randrange(len(pairs) + 1), pairs[i])  # one name twice
        elif kind == 3:
            dice.shuffle(pairs)
        elif isinstance(entry, dict) and entry:
            pairs[i] = (name, _changed(entry, kind, dice))
        else:
            pairs[i] = (name, dice.choice(ODD))
    separators = dice.choice([(",", ":"), (", ", ": "), (" ,\n", " :\t")])
    inner = separators[0].join(
        json.dumps(name, ensure_ascii=dice.random() < 0.5)
        + separators[1]
        + json.dumps(entry, separators=separators)
        for name, entry in pairs
    )
    return f"{{{inner}}}".encode() + b" " * dice.choice([0, 0, 1, 7])


def _changed(entry: dict[str, Any], kind: int, dice: random.Random) -> Any:
    changed = dict(entry)
    key = dice.choice(list(changed))
    if kind == 4:
        changed[key] = dice.choice(ODD)
    elif kind == 5 and isinstance(changed[key], list) and changed[key]:
        numbers = list(changed[key])
        at = dice.randrange(len(numbers))
        whole = numbers[at] if isinstance(numbers[at], int) else 1
        numbers[at] = dice.choice([*ODD, *EXTREMES, whole + 1, whole * 2])
        changed[key] = numbers
    elif kind == 6:
        del changed[key]
    else:
        changed[dice.choice(["strides", "dtype ", "shape"])] = dice.choice(ODD)
    return changed


def fuzz(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """So many headers; what main prints."""
    dice, path = random.Random(seed), folder / "x.safetensors"
    blobs = [
        split(save(tensors, {"format": "pt"} if i else None)) for i, tensors in enumerate(CORPUS)
    ]
    both, stricter, examples = 0, Counter[str](), dict[str, str]()
    wrong: list[str] = []
    for _ in range(count):
        header, data = dice.choice(blobs)
        text = mutated(header, dice)
        blob = struct.pack("<Q", len(text)) + text + data
        path.write_bytes(blob)
        try:
            theirs: Seen | None = as_safetensors_sees(blob)
        except SafetensorError:
            theirs = None
        try:
            mine = as_we_see(path)
        except CheckpointError as error:
            said = str(error)
            if not said.startswith(f"{path}: ") or "\n" in said:
                wrong.append(f"a refusal that is not one line: {said!r} of {text!r}")
            if theirs is not None:
                reason = re.sub(r"'[^']*'|\d[\d,]*", "…", said.removeprefix(f"{path}: "))[:60]
                stricter[reason] += 1
                examples.setdefault(reason, text.decode("utf-8", "replace")[:200])
            continue
        except Exception as error:  # noqa: BLE001  whatever it is, it is what we look for
            wrong.append(f"{type(error).__name__}: {error} of {text!r}")
            continue
        if theirs is None:
            wrong.append(f"accepted here, refused by safetensors: {text!r}")
        elif mine != theirs:
            wrong.append(f"read as something else: {text!r}")
        both += theirs is not None
    return {
        "headers": count,
        "accepted by both": both,
        "accepted by safetensors alone": {
            reason: [times, examples[reason]] for reason, times in stricter.most_common()
        },
        "wrong": wrong[:20],
    }


def command(fuzz: Callable[[Path, int, int], dict[str, Any]], count: int) -> None:
    """Runs a fuzzer as the command line says, and prints what it found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        print(json.dumps(fuzz(Path(scratch), options.count, options.seed), indent=1))


if __name__ == "__main__":
    command(fuzz, 1_000_000)
