"""PEFT's `target_parameters`: which parameter of an expert module a key is about."""

from collections.abc import Iterable

from wdecomp.errors import AdapterError, some

# The order of the parameters in transformers' expert modules, in which PEFT wraps them.
ORDER = ("gate_up_proj", "gate_up_proj_bias", "up_proj", "down_proj", "down_proj_bias")


def stacked_parameters(
    targets: Iterable[str], modules: Iterable[str], where: str
) -> dict[str, str]:
    """The parameter of each module that `target_parameters` is about.

    PEFT wraps one parameter after another in the order in which the module has them, so that the
    innermost `base_layer` is the first; the key does not say which it is.

    Raises:
        AdapterError: a module has another number of layers than there are targets in it.
    """
    layers: dict[str, list[str]] = {}
    for module in modules:
        layers.setdefault(root(module), []).append(module)
    found: dict[str, str] = {}
    for module, wrapped in layers.items():
        here = _targets_in(module, targets)
        if not here:
            continue
        if len(here) != len(wrapped):
            raise AdapterError(
                f"{where}: target_parameters names {len(here)} parameters of {module} "
                f"({some(here)}), the adapter has {len(wrapped)}. Config and weights are not of "
                "one adapter."
            )
        innermost_first = sorted(wrapped, key=len, reverse=True)
        found |= {w: f"{module}.{name}" for w, name in zip(innermost_first, here, strict=True)}
    return found


def root(module: str) -> str:
    """The module itself, without the layers around its parameters.

    >>> root("model.layers.0.mlp.experts.base_layer")
    'model.layers.0.mlp.experts'
    """
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    return module


def _targets_in(module: str, targets: Iterable[str]) -> list[str]:
    """Parameters of the module that are named, in the module's order; a `weight` is no stack."""
    named = set()
    for target in targets:
        parent, _, parameter = target.rpartition(".")
        # "all-linear" names parameters without their module: those of the modules that have stacks
        here = f".{module}".endswith(f".{parent}") if parent else module.endswith("experts")
        if here and parameter != "weight":
            named.add(parameter)
    return sorted(named, key=lambda name: (_position(name), name))


def _position(parameter: str) -> int:
    return ORDER.index(parameter) if parameter in ORDER else len(ORDER)
