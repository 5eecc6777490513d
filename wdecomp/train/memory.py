"""What a training step holds in memory, estimated from the model's shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from wdecomp.names import place
from wdecomp.train.adapting import adapted_layers
from wdecomp.train.kinds import kind_of
from wdecomp.train.layers import AdaptedLayer
from wdecomp.train.recipe import Precision

LINEAR = (nn.Linear, Conv1D)
FLOAT32 = 4
HIDDEN = ("gate", "up")  # whose outputs an activation or a product keeps
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# 4 bits; a byte for the scale of 64 weights; a float32 for the scale of 256 such bytes.
NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step holds, estimated.

    Attributes:
        weights: the base in its precision (NF4: its linear layers but the output head), adapters
            and buffers in float32.
        gradients, moments: one and two numbers for each that is trained.
        backbone: what the model saves for the backward pass: for every token the outputs of its
            linear layers, and twice the width of each norm.
        adapters: what adapters save, in float32: the input of A, dropout's mask (a byte; on a CPU
            up to four), the product with Aᵀ and, under a magnitude, the output (in the base's
            precision where there is no A) that the backbone has not. Where all is trained, each
            input.
    """

    weights: int
    gradients: int
    moments: int
    backbone: int
    adapters: int


def step_memory(
    model: nn.Module, precision: Precision, tokens: int, beside: Precision = "bfloat16"
) -> Memory:
    """What a step holds for a micro-batch of so many tokens.

    Args:
        model: adapted, or of which all parameters are trained.
        precision: of the base.
        tokens: in a micro-batch.
        beside: of what NF4 leaves as it is (embeddings, norms), and of the activations there.
    """
    each = BYTES[beside if precision == "nf4" else precision]
    adapters = adapted_layers(model)
    linear = {n: layer for n, layer in model.named_modules() if isinstance(layer, LINEAR)}
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    packed = {id(layer.weight) for layer in linear.values() if layer is not head}
    of_trained = FLOAT32 if adapters else each
    weights = trained = 0.0
    for p in model.parameters():
        of_frozen = NF4 if precision == "nf4" and id(p) in packed else each
        weights += p.numel() * (of_trained if p.requires_grad else of_frozen)
        trained += p.numel() * of_trained * p.requires_grad
    shared = next((v.projections for v in adapters.values() if v.projections is not None), None)
    constants = [*model.buffers(), *((shared.a, shared.b) if shared else ())]
    widths = [_width(m) for m in model.modules() if type(m).__name__.endswith("Norm")]
    backbone = sum(matrix_shape(layer)[0] for layer in linear.values()) + 2 * sum(widths)
    inputs = {(name.rpartition(".")[0], matrix_shape(layer)[1]) for name, layer in linear.items()}
    saved = _saved(adapters, each) if adapters else each * sum(width for _, width in inputs)
    return Memory(
        weights=round(weights) + sum(constant.nbytes for constant in constants),
        gradients=round(trained),
        moments=2 * round(trained),
        backbone=round(each * tokens * backbone),
        adapters=round(tokens * saved),
    )


def matrix_shape(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a layer's matrix."""
    outputs, inputs = kind_of("", layer).matrix(layer).shape
    return outputs, inputs


def _width(norm: nn.Module) -> int:
    return max((p.numel() for p in norm.parameters()), default=0)


def _saved(adapters: Mapping[str, AdaptedLayer], each: float) -> float:
    """Bytes for each token that linear layers' adapters save."""
    found, inputs = 0.0, {}
    for name, layer in adapters.items():
        adapter, (outputs, width) = layer.adapter, matrix_shape(layer.base)
        alone = adapter.method == "magnitude"
        # A layer in one dtype keeps its own output, and so does what comes after a hidden one.
        shared = not alone and each == FLOAT32 and place(f"{name}.weight").module in HIDDEN
        if layer.magnitude is not None and not shared:
            found += (each if alone else FLOAT32) * outputs
        if not alone:
            found += FLOAT32 * adapter.rank
            # A copy in float32, and what dropout leaves, is each layer's own; else the input is
            # that of all layers beside it.
            own = each < FLOAT32 or adapter.dropout > 0
            at = name if own else name.rpartition(".")[0]
            inputs[at, width] = (FLOAT32 + (adapter.dropout > 0)) * width
    return found + sum(inputs.values())
