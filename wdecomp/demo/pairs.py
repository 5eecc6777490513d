"""The demo's training set: what the running Python's standard library says about itself.

Every documented function and class of the standard library gives one pair

    (signature, first paragraph of its docstring)

and the task is to find the docstring that belongs to a signature. The files are parsed, never
imported, so that no code of theirs runs. How many pairs there are depends on the interpreter
(CPython 3.11.7: 6338), and so scores of two interpreters do not compare.
"""

import ast
import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

SKIPPED = {
    *("test", "tests", "idlelib", "lib2to3", "turtledemo"),
    *("ensurepip", "pydoc_data", "site-packages"),
}
SHORTEST = 20  # characters; a shorter summary ("See above.") says nothing about its function

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


class Pair(NamedTuple):
    """A signature and the first paragraph of the docstring that belongs to it."""

    signature: str
    summary: str


def standard_library_pairs(root: Path | None = None) -> list[Pair]:
    """The pairs of every module under `root` (default: the standard library), in path order.

    A pair whose signature or summary, case aside, has been seen before is dropped: a search for
    it would have two right answers.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    seen: set[str] = set()
    pairs = []
    for pair in _all_pairs(root):
        texts = {pair.signature.casefold(), pair.summary.casefold()}
        if seen.isdisjoint(texts):
            seen |= texts
            pairs.append(pair)
    return pairs


def split(pairs: Iterable[Pair]) -> tuple[list[Pair], list[Pair]]:
    """(train, test): a pair is for testing if sha256("signature|summary") is divisible by 10.

    The side depends on the pair alone, not on its neighbours, so that it stays on its side
    whatever a Python release adds.
    """
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        digest = hashlib.sha256("|".join(pair).encode()).hexdigest()
        sides[int(digest, 16) % 10 == 0].append(pair)
    return sides


def _all_pairs(root: Path) -> Iterator[Pair]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not SKIPPED.isdisjoint(parts):
            continue
        module = ".".join(parts).removesuffix(".__init__")
        for name, definition in _definitions(_parsed(path), module):
            summary = _summary(definition)
            if len(summary) >= SHORTEST:
                yield Pair(_signature(name, definition), summary)


def _parsed(path: Path) -> ast.Module:
    """The file's syntax tree; an empty one for a template that is not Python."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    """The functions and classes that stand directly in a module or a class, with dotted names."""
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, Definition):
            name = f"{prefix}.{child.name}"
            if isinstance(node, ast.Module | ast.ClassDef):
                yield name, child
        yield from _definitions(child, name)


def _signature(name: str, definition: Definition) -> str:
    """`module.name(a, *args, kw, **kwargs)` without self and cls, or `class module.name`."""
    if isinstance(definition, ast.ClassDef):
        return f"class {name}"
    a = definition.args
    given = [x.arg for x in a.posonlyargs + a.args if x.arg not in ("self", "cls")]
    given += [f"*{a.vararg.arg}"] if a.vararg else []
    given += [x.arg for x in a.kwonlyargs]
    given += [f"**{a.kwarg.arg}"] if a.kwarg else []
    return f"{name}({', '.join(given)})"


def _summary(definition: Definition) -> str:
    docstring = ast.get_docstring(definition) or ""
    return " ".join(docstring.split("\n\n")[0].split())
