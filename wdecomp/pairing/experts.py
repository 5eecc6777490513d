"""One expert's part of an update that an adapter has for a whole stack."""

from wdecomp.adapter import Adapted, ExpertStack
from wdecomp.checkpoint import Checkpoint, count
from wdecomp.errors import PairingError
from wdecomp.pairing.targets import Target

# Families whose experts have `is_transposed`: stored (input, output), and PEFT knows it.
KNOWN_TRANSPOSED = ("gpt_oss",)


def expert_of(stack: ExpertStack, target: Target, base: Checkpoint, tuned: Checkpoint) -> Adapted:
    """The update of the expert that a target names.

    PEFT adds BA to the stored (rows, columns) where A is as long as the rows, and (BA)ᵀ where B
    is: the shape tells which. Of square experts it transposes those whose class says
    `is_transposed`, and adds to all others as they are stored.

    Raises:
        PairingError: the factors are of other experts.
    """
    slot = target.slot
    plane = slot.matrix.plane if target.plane is None else target.plane
    split = target.of_part  # the adapter's stack is fused, the base's is not
    module = slot.matrix if split else slot.module
    shape = (_outputs(target, plane), module.shape[1]) if split else module.shape
    inputs, outputs = stack.sides
    if plane is None or plane >= stack.experts or (outputs, inputs) not in (shape, shape[::-1]):
        raise PairingError(
            f"{slot.parameter}: base is {shape} (output, input) for each expert, the adapter in "
            f"{tuned.path} has factors of {stack.experts} experts for {(outputs, inputs)}. "
            "It was trained on another base."
        )
    transposed = (outputs, inputs) != shape
    if shape[0] == shape[1]:
        model_type = base.model_type_of(slot.name) or tuned.model_type
        transposed = slot.matrix.input_first and model_type not in KNOWN_TRANSPOSED
    return Adapted(
        stack.expert(plane, transposed), None, module, target.outputs if split else slot.outputs
    )


def _outputs(target: Target, plane: int | None) -> int:
    """Outputs of one expert in the adapter's stack: of all parts of its plane."""
    parts = [part for part in target.layout.parts if part.plane == plane]
    sizes = [count(part.outputs) for part in parts if part.outputs is not None]
    return sum(sizes) or target.slot.matrix.shape[0]
