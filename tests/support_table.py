"""docs/formats.md, made of the cases that the tests run and of the tables that the code refuses by.

    python tests/support_table.py        # writes it

A test holds the file beside what this makes.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import test_diffusers_adapters
import test_experts
import test_families
import test_kohya_parts
import test_layouts
import test_lycoris
import test_peft_lora
import test_peft_others
import test_peft_variants
import test_quantized
import test_renames
import test_through_peft
from peft import PeftType

from wdecomp.adapter.kohya_parts import REFUSED as KOHYA_REFUSED
from wdecomp.adapter.peft import REFUSED, REPLACING, SUPPORTED, THROUGH_PEFT
from wdecomp.adapter.peft_lora import BASE_CHANGED, OTHER_MEANINGS
from wdecomp.checkpoint.quantized.gather import FOREIGN, READ

HERE = Path(__file__).parent
FILE = HERE.parent / "docs/formats.md"
HEAD = """# What wdecomp opens

Made by `python tests/support_table.py` from the cases of the tests: every case named here is
written by the library itself (or, where none writes it, laid by its definition) and held beside
that library's own merged or decoded weights, to 1e-5 of the largest weight or closer. What is
refused is refused by name, with the reason given here.
"""


def table() -> str:
    """The whole page."""
    blocks = (
        _containers(),
        _peft(),
        _lora(),
        _experts(),
        _other_dialects(),
        _quantised(),
        _models(),
    )
    return HEAD + "".join("\n" + "\n".join(block) + "\n" for block in blocks)


def _containers() -> Iterator[str]:
    yield "## Files and folders"
    yield ""
    for file in ("test_container.py", "test_folders.py", "test_pickled.py"):
        yield from (f"- {_sentence(name)}" for name in _tests_of(file))


def _peft() -> Iterator[str]:
    """Every tuner type that PEFT has."""
    cases = defaultdict(list)
    for case, (_, kind, _) in test_peft_others.CASES.items():
        cases[kind.removesuffix("Config").upper()].append(case)
    cases["LORA"] = ["see the next section"]
    for case in test_through_peft.CASES:
        cases[case.split()[0].upper()].append(case)
    spelled = {"TRAINABLE_TOKENS": "TRAINABLETOKENS", "LN_TUNING": "LNTUNING"}
    yield "## PEFT: every tuner type"
    yield ""
    yield "| type | | cases, or the reason |"
    yield "|---|---|---|"
    for kind in sorted(kind.value for kind in PeftType):
        if kind in SUPPORTED:
            how = "replaces" if kind in REPLACING else "read"
            how = "through peft, if it is installed" if kind in THROUGH_PEFT else how
            yield f"| {kind} | {how} | {', '.join(cases[spelled.get(kind, kind)])} |"
        else:
            yield f"| {kind} | refused | {REFUSED[kind]} |"


def _lora() -> Iterator[str]:
    yield "## PEFT: LoRA and DoRA"
    yield ""
    yield from _list([*test_peft_lora.CASES, *test_peft_variants.CASES])
    yield ""
    yield "Refused, by a field of adapter_config.json:"
    yield ""
    yield from (f"- `{field}`: it {why}" for field, why in OTHER_MEANINGS.items())
    yield from (
        f"- `init_lora_weights: {start}…` unless saved converted: the base was changed by {why}"
        for start, why in BASE_CHANGED.items()
    )


def _experts() -> Iterator[str]:
    yield "## Experts adapted in stacks (`target_parameters`)"
    yield ""
    for family in test_experts.FAMILIES:
        targets = ", ".join("+".join(each) for each in test_experts.TARGETS)
        widths = ", ".join(str(width) for width in test_experts.WIDTHS)
        yield f"- {family}: {targets}; widths {widths} of 24 (square and not)"


def _other_dialects() -> Iterator[str]:
    yield "## Other dialects"
    yield ""
    yield "kohya and LyCORIS, flat or dotted names:"
    yield ""
    yield from _list([*test_lycoris.CASES, *test_kohya_parts.CASES])
    yield from (f"- refused: {why} (`{part}`)" for part, why in KOHYA_REFUSED.items())
    yield ""
    yield "diffusers, with metadata and without, in new and old spellings:"
    yield ""
    yield from _list(test_diffusers_adapters.CASES)
    for file in ("test_other_dialects.py", "test_foreign_parts.py", "test_torchtune.py"):
        yield ""
        yield from (f"- {_sentence(name)}" for name in _tests_of(file))


def _quantised() -> Iterator[str]:
    yield "## Quantised storage"
    yield ""
    yield from _list([*test_quantized.CASES, "mxfp4 stacks of experts", "fp8 without scales"])
    methods = ", ".join(sorted(READ))
    foreign = ", ".join(sorted({*FOREIGN.values(), "GGUF", "EETQ", "torchao"}))
    yield f"- refused: any `quant_method` but {methods}; {foreign} by name"


def _models() -> Iterator[str]:
    yield "## Models whose fused tensors are split, and whose names changed"
    yield ""
    yield f"Fused projections: {', '.join(_names(test_layouts.FUSED))}."
    yield ""
    yield f"Names of transformers 4 and 5: {', '.join(_names(test_renames.MODELS))}."
    yield ""
    yield f"DoRA on every linear layer, end to end: {', '.join(_names(test_families.FAMILIES))}."


def _names(cases: Iterable[object]) -> list[str]:
    return sorted({str(case) for case in cases})


def _list(cases: Mapping[str, object] | Iterable[str]) -> list[str]:
    return [f"- {case}" for case in dict.fromkeys(cases)]


def _tests_of(file: str) -> list[str]:
    tree = ast.parse((HERE / file).read_text())
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return [node.name for node in functions if node.name.startswith("test_")]


def _sentence(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


if __name__ == "__main__":
    FILE.write_text(table())
