"""What to do about weights that are not opened as they are: commands to copy, on one line."""

import shlex
from itertools import count
from pathlib import Path

from wdecomp.checkpoint.filenames import INDEX, SHARD, is_index, is_state

SAFE = ".safetensors"
NAMES = {"pytorch_model": "model"}  # what a folder's converted file is called, to be found again

_LOAD = 'torch.load({source},map_location="cpu",weights_only=True)'
_NESTED = '("state_dict","model","module","model_state_dict")'
_SAVE = (
    "t={load}; t=next((t[k] for k in {nested} if isinstance(t.get(k),dict)),t); "
    "save_file({{k:v.detach().clone().contiguous() for k,v in t.items() "
    'if isinstance(v,torch.Tensor)}},{target},metadata={{"format":"pt"}})'
)
_ONE = "import torch; from safetensors.torch import save_file; "
_SHARDS = (
    "import json,pathlib,torch; from safetensors.torch import save_file; "
    'd=pathlib.Path({folder}); w=json.loads((d/{index}).read_text())["weight_map"]; '
    'n={{f:f.removesuffix(".bin")+".safetensors" for f in w.values()}}; '
    '[save_file({{k:v.clone().contiguous() for k,v in torch.load(d/f,map_location="cpu",'
    'weights_only=True).items()}},d/n[f],metadata={{"format":"pt"}}) for f in n]; '
    "(d/{target}).write_text(json.dumps(dict(metadata={{}},weight_map={{k:n[f] "
    "for k,f in w.items()}})))"
)


def pickled(file: Path) -> str:
    """Why a pickled file is not opened, and how to convert it."""
    return (
        f"{file}: is pickled: {file.name} may run code when opened. If you trust it, "
        f"--allow-pickle opens its tensors; to convert it instead, run: {conversion(file)}"
    )


def state(file: Path) -> str:
    """Why a trainer's state is never opened."""
    return (
        f"{file}: is what a trainer needs to go on, expected weights. "
        "Name the folder or file that holds the model."
    )


def distributed(named: Path, folder: Path) -> str:
    """Why a folder of torch's distributed checkpoints is not opened, and how to convert it."""
    out, target = named / "out.pt", _free(named, "model")
    merge = f"accelerate merge-weights {_shell(folder)} {_shell(named)}"
    gather = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {_shell(folder)}"
    return (
        f"{folder}: is a distributed checkpoint (.metadata and .distcp), which is pickled and in "
        f"pieces and is not opened. Where you trust it, run: {merge} – or, without accelerate, "
        f"run: {gather} {_shell(out)} && {_one(out, target)}"
    )


def deepspeed(folder: Path) -> str:
    """How to get weights out of a folder of DeepSpeed's ZeRO."""
    return (
        f"{folder}: is a checkpoint of DeepSpeed ZeRO, whose pieces are pickled and not opened. "
        "Where you trust it, run its zero_to_fp32.py: "
        f"python {_shell(folder / 'zero_to_fp32.py')} {_shell(folder)} "
        f"{_shell(folder / 'model')} --safe_serialization"
    )


def conversion(file: Path) -> str:
    """The command that writes a pickled file or its index of shards as safetensors."""
    if not is_index(file):
        stem = file.name.rpartition(".")[0]
        first, dot, variant = stem.partition(".")
        return _one(file, _free(file.parent, NAMES.get(first, first) + dot + variant))
    first, _, _ = file.name.partition(".")
    kind = (INDEX.search(file.name) or [""])[0]
    target = _free(file.parent, NAMES.get(first, first), SAFE + kind)
    return _python(
        _SHARDS.format(
            folder=_literal(str(file.parent)),
            index=_literal(file.name),
            target=_literal(target.name),
        )
    )


def is_distributed(folder: Path) -> bool:
    """Whether torch's distributed checkpointing wrote a folder."""
    return (folder / ".metadata").is_file() or any(folder.glob("*.distcp"))


def is_deepspeed(folder: Path) -> bool:
    """Whether DeepSpeed's ZeRO wrote a folder."""
    return (folder / "zero_to_fp32.py").is_file() or any(folder.glob("global_step[0-9]*/*.pt"))


def convertible(names: list[str]) -> list[str]:
    """Of the pickled files of a folder, those that may hold weights; a shard has its index."""
    return [n for n in names if not is_state(Path(n)) and not SHARD.search(n)]


def _one(source: Path, target: Path) -> str:
    load = _LOAD.format(source=_literal(str(source)))
    code = _SAVE.format(load=load, nested=_NESTED, target=_literal(str(target)))
    return _python(_ONE + code)


def _free(folder: Path, stem: str, suffix: str = SAFE) -> Path:
    """A file that is not there yet: a command that is copied must not write over anything."""
    names = (f"{stem}{'-' + str(n) if n > 1 else ''}{suffix}" for n in count(1))
    return next(folder / name for name in names if not (folder / name).exists())


def _python(code: str) -> str:
    return f"python -c '{code}'"


def _shell(path: Path) -> str:
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def _literal(text: str) -> str:
    r"""A text as Python source that may stand in a shell's single quotes and on one line.

    >>> print(_literal("it's \"a\"\n"))
    "it\x27s \x22a\x22\x0a"
    """
    plain = (c if c.isprintable() and c not in "'\"\\" else _escaped(c) for c in text)
    return f'"{"".join(plain)}"'


def _escaped(character: str) -> str:
    code = ord(character)
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )
