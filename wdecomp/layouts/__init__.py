"""How one stored tensor splits into matrices: fused projections and stacks of experts.

`table` says which family has which layout, `schemes` what the layouts are. Of a GLU the half that
goes through the activation is "gate", whatever the model calls it.
"""

from wdecomp.layouts.config import Config, Numbers, numbers
from wdecomp.layouts.parts import Layout, Part, Pieces
from wdecomp.layouts.schemes import NO_FAMILY, scheme
from wdecomp.layouts.spelled import of_fused
from wdecomp.layouts.stacks import expert_rows, stack
from wdecomp.layouts.table import AMBIGUOUS, FAMILIES, SPELLED, STACKS
from wdecomp.names import ending, place, stores_input_first

__all__ = ["Layout", "Part", "Pieces", "layout"]

MODULES = {"mlp": "up"}  # a label that is not the module kind itself
ONE_MATRIX = Layout()
_MAYBE = (
    dict(SPELLED) | dict(AMBIGUOUS) | {k: v for rows in FAMILIES.values() for k, v in rows.items()}
)


def layout(parameter: str, shape: tuple[int, ...], config: Config) -> Layout:
    """The matrices in a stored tensor; `config` is the model's config.json, {} if there is none.

    A tensor that may be fused, but whose family or sizes cannot be told, is not split, and the note
    says why.

    >>> phi = {"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 1}
    >>> found = layout("model.layers.0.self_attn.qkv_proj.weight", (96, 64), phi)
    >>> [(part.label, part.outputs) for part in found.parts]
    [('q', (range(0, 64),)), ('k', (range(64, 80),)), ('v', (range(80, 96),))]
    """
    if 0 in shape:
        return ONE_MATRIX
    if len(shape) == 3 and (kind := ending(parameter, STACKS)):
        return stack(parameter, (shape[0], shape[1], shape[2]), kind, numbers(config, parameter))
    if len(shape) != 2:
        return ONE_MATRIX
    if ending(parameter, _MAYBE) is None:
        return ONE_MATRIX
    own = numbers(config, parameter)
    name = _scheme(parameter, own)
    if name is None:
        return ONE_MATRIX if ending(parameter, AMBIGUOUS) is None else Layout(note=NO_FAMILY)
    if name.startswith("experts"):
        return expert_rows(parameter, shape, place(parameter).module, own)
    return _fused(parameter, shape, name, own)


def _scheme(parameter: str, own: Numbers) -> str | None:
    """The family's own scheme for a name, else the one that all use for it."""
    for model_type in own.model_types:
        found = ending(parameter, FAMILIES.get(model_type, {}))
        if found is not None:
            return found
    return ending(parameter, SPELLED)


def _fused(parameter: str, shape: tuple[int, ...], name: str, own: Numbers) -> Layout:
    model_type = next(iter(own.model_types), None)
    turned = stores_input_first(parameter, model_type, (shape[0], shape[1]))
    outputs, inputs = (shape[1], shape[0]) if turned else (shape[0], shape[1])
    if name == "c_attn" and turned:
        name = "q k v"  # GPT-2's Conv1D
    comb = scheme(name)(outputs, inputs, own)
    if isinstance(comb, str):
        return Layout(note=comb)
    parts = (
        Part(label, MODULES.get(label, label), None, pieces, of_fused(parameter, label, own))
        for label, pieces in comb.outputs.items()
    )
    return Layout(tuple(parts), None, str(comb))
