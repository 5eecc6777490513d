"""Which parameters of a model are trained: all of them, or adapters and some modules whole."""

from collections.abc import Collection, Mapping

from torch import nn

from wdecomp.errors import TrainingError
from wdecomp.train.adapting import adapt, adapted_layers
from wdecomp.train.layers import Adapter
from wdecomp.train.nf4 import Nf4Linear


def make_trainable(
    model: nn.Module,
    method: str,
    adapters: Mapping[str, Adapter],
    modules_to_save: Collection[str],
) -> None:
    """Lets what is to be trained have gradients; puts adapters in, if any.

    Args:
        model: changed in place.
        method: "full", or what adapters train.
        adapters: as in `adapt`.
        modules_to_save: last names of modules that are trained whole beside them.

    Raises:
        TrainingError: what is named is not there, or cannot be trained so.
    """
    if method == "full":
        _require_numbers(model)
        model.requires_grad_(True)
        return
    adapt(model, adapters)
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in modules_to_save:
            _require_saveable(name, module, adapters)
            module.requires_grad_(True)


def _require_numbers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, Nf4Linear):
            raise TrainingError(
                f"{name}: is in NF4, a Linear layer was expected to be trained whole. "
                "Train adapters on it, or the model as it was before."
            )


def _require_saveable(name: str, module: nn.Module, adapters: Mapping[str, Adapter]) -> None:
    if adapted_layers(module):
        raise TrainingError(
            f"{name}: is both adapted and trained whole, one was expected. "
            "Leave it out of the targets."
        )
    if any(adapter.axis == "input" for adapter in adapters.values()):
        raise TrainingError(
            f"{name}: is trained whole beside magnitudes of inputs, those of outputs were "
            'expected. No format holds both: use axis "output".'
        )
