"""Flat names of kohya and LyCORIS to a base's names: `lora_unet_down_blocks_0_…_to_q.weight`.

A flat name is a prefix for the component and the module's path with `_` for `.`. Every base name
is flattened and looked up, in its own component alone: the same layers are in every text encoder.
A folder of one component does not say which it is; there the text encoder is taken that most names
fit.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from wdecomp.errors import PairingError
from wdecomp.flat_names.spellings import diffusers_modules

Fits = Callable[[str, str], bool]

# Prefix of a flat name → the component that it is about; "" for any.
PREFIXES: Mapping[str, str] = {
    "lora_unet_": "unet",
    "oft_unet_": "unet",
    "lora_transformer_": "unet",
    "lora_te1_": "te1",
    "lora_te2_": "te2",
    "lora_te3_": "te3",
    "lora_te_": "te1",
    "lycoris_": "",
}
# Start of a base name → component: of diffusers' pipelines and of original single files.
COMPONENTS: Mapping[str, str] = {
    "unet.": "unet",
    "transformer.": "unet",
    "model.diffusion_model.": "unet",
    "diffusion_model.": "unet",
    "text_encoder.": "te1",
    "text_encoder_2.": "te2",
    "text_encoder_3.": "te3",
    "cond_stage_model.transformer.": "te1",
    "cond_stage_model.model.": "te1",
    "conditioner.embedders.0.transformer.": "te1",
    "conditioner.embedders.1.model.": "te2",
    "text_encoders.clip_l.transformer.": "te1",
    "text_encoders.clip_g.transformer.": "te2",
    "text_encoders.t5xxl.transformer.": "te3",
}
TEXT_ENCODERS = ("te1", "te2", "te3")
# Where a component is if a pipeline does not have it under its own number: the T5 of Flux is te3 to
# sd-scripts and text_encoder_2 to diffusers.
INSTEAD: Mapping[str, str] = {"te3": "te2"}
LEAVES = (".weight", ".bias")


def match_flat(
    base: Iterable[str], flat: Iterable[str], fits: Fits | None = None
) -> dict[str, tuple[str, ...]]:
    """The base's names for each flat name: none, one, or those of which the module is made up.

    Several are of consecutive outputs of the flat module, in this order.

    Args:
        base: parameter names, below components of a pipeline or not.
        flat: parameter names whose modules are flat.
        fits: whether a flat and a base name have one shape; without it no name is matched by its
            end alone.

    Raises:
        PairingError: two flat names are one name of the base.

    >>> match_flat(["unet.mid_block.proj.weight"], ["lora_unet_mid_block_proj.weight"])
    {'lora_unet_mid_block_proj.weight': ('unet.mid_block.proj.weight',)}
    """
    split = {name: _split_flat(name) for name in flat}
    index = _Index(base, {component for component, _, _ in split.values()})
    found = {name: index.find(*each) for name, each in split.items()}
    if fits is not None:
        missing = [name for name, here in found.items() if not here]
        by_end = {name: index.find_by_end(name, fits) for name in missing}
        # What stands before all names is missing from all: a few that end alike are chance.
        if 2 * sum(here != () for here in by_end.values()) > len(missing):
            found |= by_end
    if index.bare:
        _keep_one_text_encoder(found, fits)
    _check_unique(found)
    return found


def _split_flat(name: str) -> tuple[str, str, str]:
    """Component, flat module and leaf."""
    leaf = next((leaf for leaf in LEAVES if name.endswith(leaf)), "")
    module = name.removesuffix(leaf)
    for prefix, component in PREFIXES.items():
        if module.startswith(prefix):
            return component, module.removeprefix(prefix), leaf
    return "", module, leaf


class _Index:
    """The base's names by component ("" for none) and flat name, as diffusers has it."""

    def __init__(self, base: Iterable[str], asked: set[str]) -> None:
        self._asked = asked  # components of the adapter
        self._exact: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._by_end: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._flat: dict[str, tuple[str, str]] = {}
        for name in base:
            component, flat = _flattened(name)
            self._flat[name] = component, flat
            for spelled in _spelled(flat):
                self._exact[component, spelled].add(name)
        self._components = {component for component, _ in self._flat.values()} - {""}

    @property
    def bare(self) -> bool:
        """Whether no name says which component it is of."""
        return not self._components

    def find(self, component: str, module: str, leaf: str) -> tuple[str, ...]:
        """The base's names of a module; none where any part of it is missing or in doubt."""
        for modules in ((module,), diffusers_modules(module)):
            here = [self._one(component, each + leaf) for each in modules]
            if None not in here:
                return tuple(each for each in here if each)
        return ()

    def find_by_end(self, name: str, fits: Fits) -> tuple[str, ...]:
        """The one base name that ends as a flat one does, or the other way round, and fits."""
        if not self._by_end:
            for each, (component, flat) in self._flat.items():
                for end in _ends(flat):
                    self._by_end[component, end].add(each)
        component, module, leaf = _split_flat(name)
        modules = diffusers_modules(module)
        if len(modules) > 1:
            return ()
        flat = modules[0] + leaf
        for table, wanted in ((self._by_end, [flat]), (self._exact, _ends(flat))):
            for key in self._keys(component):
                here = {each for end in wanted for each in table.get((key, end), ())}
                fitting = [each for each in here if fits(name, each)]
                if len(fitting) == 1:
                    return (fitting[0],)
        return ()

    def _one(self, component: str, flat: str) -> str | None:
        here = {each for key in self._keys(component) for each in self._exact.get((key, flat), ())}
        return next(iter(here)) if len(here) == 1 else None

    def _keys(self, component: str) -> Sequence[str]:
        """The components of the base in which names of one of the adapter's are."""
        if not component:  # LyCORIS, of whatever model
            return ("", *sorted(self._components))
        if component in self._components:
            return (component,)
        instead = INSTEAD.get(component, "")
        if instead in self._components - self._asked:
            return (instead,)
        return ("",) if self.bare else ()


def _flattened(name: str) -> tuple[str, str]:
    """Component and flat name of a base name, with the module as diffusers has it."""
    component = ""
    for start, known in COMPONENTS.items():
        if name.startswith(start):
            component, name = known, name.removeprefix(start)
            break
    leaf = next((leaf for leaf in LEAVES if name.endswith(leaf)), "")
    module = name.removesuffix(leaf).replace(".", "_")
    renamed = diffusers_modules(module)
    return component, (renamed[0] if len(renamed) == 1 else module) + leaf


def _spelled(flat: str) -> Iterator[str]:
    """With and without the level that transformers 5 has dropped from CLIP's text model."""
    yield flat
    short = flat.removeprefix("text_model_")
    yield short if short != flat else f"text_model_{flat}"


def _ends(flat: str) -> list[str]:
    """All that follows an underscore, down to a layer and three more words."""
    parts = flat.split("_")
    return ["_".join(parts[i:]) for i in range(1, max(len(parts) - 3, 1))]


def _keep_one_text_encoder(found: dict[str, tuple[str, ...]], fits: Fits | None) -> None:
    """Of the adapter's text encoders, the one that most of a lone encoder's tensors fit."""
    of = {name: _split_flat(name)[0] for name, here in found.items() if here}
    asked = {component for component in of.values() if component in TEXT_ENCODERS}
    if len(asked) < 2:
        return
    fitting = Counter(dict.fromkeys(sorted(asked), 0))
    for name, component in of.items():
        if component in asked and (fits is None or fits(name, found[name][0])):
            fitting[component] += 1
    kept = fitting.most_common(1)[0][0]
    for name, component in of.items():
        if component in asked and component != kept:
            found[name] = ()


def _check_unique(found: Mapping[str, tuple[str, ...]]) -> None:
    first: dict[str, str] = {}
    for name, here in found.items():
        for each in here:
            if first.setdefault(each, name) != name:
                raise PairingError(
                    f"{each}: both {first[each]} and {name} of the adapter are this tensor."
                )
