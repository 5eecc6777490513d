"""PEFT's other tuners whose change is a matrix: each a function from factors to its updates."""

from collections.abc import Callable, Mapping
from math import isqrt

from wdecomp.adapter.adapter import ModuleUpdate
from wdecomp.adapter.change import Update
from wdecomp.adapter.config import Fields, by_module
from wdecomp.adapter.factored import factored
from wdecomp.adapter.factors import Factors
from wdecomp.adapter.low_rank import AdaLora, DeLora
from wdecomp.adapter.products import Hadamard, Kronecker
from wdecomp.adapter.rotations import Boft, Hra, Oft
from wdecomp.adapter.scalings import Added, Scaling
from wdecomp.adapter.updates import Magnitude
from wdecomp.adapter.vera import Vera
from wdecomp.errors import AdapterError, some

MOST_TERMS = 1000  # of a series that has converged, or never will
Modules = Mapping[str, Factors]
Updates = dict[str, ModuleUpdate]


def adalora(fields: Fields, modules: Modules) -> Updates:
    """AdaLoRA: the scale is that of the rank before pruning."""
    start, alpha = fields.count("init_r", 12), fields.number("lora_alpha", 8)
    scaling = (alpha if alpha > 0 else start) / (start + 1e-5)

    def update(factors: Factors) -> Update:
        a, b = factors.pair("lora_A", "lora_B")
        e = factors.vector("lora_E", a.shape[0], "ranks")
        return AdaLora(a, e, b, scaling)

    return _weights(modules, update)


def vera(fields: Fields, modules: Modules) -> Updates:
    """VeRA, and DVoRA where there is a magnitude."""
    shared = modules.get("")
    a = shared.maybe("vera_A") if shared else None
    b = shared.maybe("vera_B") if shared else None
    if shared is not None and (a is None) != (b is None):
        shared.get("vera_B" if b is None else "vera_A")  # says that it is missing
    key = fields.raw.get("projection_prng_key", 0)
    if type(key) is not int or key < 0:
        raise AdapterError(
            f"{fields.where}: projection_prng_key is {key!r}, expected a whole number."
        )
    updates: Updates = {}
    for module, factors in modules.items():
        if not module:
            continue
        update = Vera(factors.get("vera_lambda_b", 1), factors.get("vera_lambda_d", 1), a, b, key)
        if update.rank != fields.count("r", 256):
            raise factors.refuse(f"rank is {update.rank}", f"the config's r, {fields.count('r')}")
        part = "vera_magnitude_vector"
        outputs = update.lambda_b.shape[0]
        magnitude = Magnitude(factors.vector(part, outputs, "outputs")) if part in factors else None
        updates[f"{module}.weight"] = ModuleUpdate(update, magnitude)
    without = [name for name, each in updates.items() if each.magnitude is None]
    if 0 < len(without) < len(updates):
        raise AdapterError(
            f"{fields.where}: vera_magnitude_vector is missing for {len(without)} of "
            f"{len(updates)} modules ({some(without)}). It was saved incompletely."
        )
    return updates


def loha(fields: Fields, modules: Modules) -> Updates:
    """LoHa."""
    alphas = _alphas(fields, modules)

    def update(factors: Factors) -> Update:
        first = factored(factors, "hada_w1_a", "hada_w1_b", "hada_t1")
        second = factored(factors, "hada_w2_a", "hada_w2_b", "hada_t2")
        if first.shape != second.shape:
            raise factors.refuse(f"its products are {first.shape} and {second.shape}", "one shape")
        rank = factors.get("hada_w1_b").shape[0]
        return Hadamard(first, second, alphas[factors.module] / rank)

    return _weights(modules, update)


def lokr(fields: Fields, modules: Modules) -> Updates:
    """LoKr: the scale has the config's rank, also where both matrices are stored whole."""
    alphas = _alphas(fields, modules)
    ranks = by_module(modules, fields.counts("rank_pattern"), fields.count("r", 8), fields.where)

    def update(factors: Factors) -> Update:
        first = factored(factors, "lokr_w1_a", "lokr_w1_b", None, "lokr_w1")
        second = factored(factors, "lokr_w2_a", "lokr_w2_b", "lokr_t2", "lokr_w2")
        return Kronecker(first, second, alphas[factors.module] / ranks[factors.module])

    return _weights(modules, update)


def oft(fields: Fields, modules: Modules) -> Updates:
    """OFT as of PEFT 0.18, which has another series than 0.14 to 0.17."""
    if any("oft_r" in factors for factors in modules.values()):
        raise AdapterError(
            f"{fields.where}: is an OFT adapter of PEFT 0.13 or older (`oft_r`), which later "
            "versions cannot load either."
        )
    terms = fields.count("num_cayley_neumann_terms", 5)
    if terms > MOST_TERMS:
        raise AdapterError(
            f"{fields.where}: num_cayley_neumann_terms is {terms}, expected at most {MOST_TERMS}."
        )
    neumann = terms if fields.flag("use_cayley_neumann", default=True) else None
    constraint = fields.number("eps", 6e-5) if fields.flag("coft") else None

    def update(factors: Factors) -> Update:
        if "oft_embedding_R" in factors:
            raise factors.refuse("OFT of an embedding", "a linear layer or a convolution")
        weight = factors.get("oft_R", 2)
        block = (1 + isqrt(1 + 8 * weight.shape[1])) // 2
        if block * (block - 1) // 2 != weight.shape[1]:
            raise factors.refuse(f"oft_R has {weight.shape[1]} columns", "b(b − 1)/2 of them")
        return Oft(weight, block, neumann, constraint)

    return _weights(modules, update)


def boft(fields: Fields, modules: Modules) -> Updates:
    """BOFT."""

    def update(factors: Factors) -> Update:
        blocks = factors.get("boft_R", 4)
        stages, count, size, other = blocks.shape
        butterfly = size % 2 == 0 and stages <= 64 and count % (1 << (stages - 1)) == 0
        if size != other or not (stages == 1 or butterfly):
            raise factors.refuse(f"boft_R is {blocks.shape}", "square blocks, halved at each stage")
        return Boft(blocks, factors.get("boft_s"))

    return _weights(modules, update)


def ia3(fields: Fields, modules: Modules) -> Updates:
    """IA³: inputs of feed-forward modules are scaled, outputs of all others, with their bias."""
    feedforward = fields.texts("feedforward_modules")
    as_pattern = isinstance(fields.raw.get("feedforward_modules"), str)
    updates: Updates = {}
    for module, factors in modules.items():
        scale = factors.get("ia3_l")
        of_inputs = _is_feedforward(module, feedforward, as_pattern, fields.where)
        if len(scale.shape) == 2 and 1 in scale.shape and scale.shape != (1, 1):
            of_inputs = scale.shape[0] == 1  # as it was made, whatever the config says
        updates[f"{module}.weight"] = ModuleUpdate(
            Scaling(scale, "input" if of_inputs else "output")
        )
        if not of_inputs:
            updates[f"{module}.bias"] = ModuleUpdate(Scaling(scale, "input"))
    return updates


def hra(fields: Fields, modules: Modules) -> Updates:
    """HRA."""
    orthogonal = fields.flag("apply_GS")
    return _weights(modules, lambda factors: Hra(factors.get("hra_u", 2), orthogonal))


def delora(fields: Fields, modules: Modules) -> Updates:
    """DeLoRA."""

    def update(factors: Factors) -> Update:
        a, b = factors.pair("delora_A", "delora_B")
        strength = factors.vector("delora_lambda", 1, "adapter")
        norms = factors.vector("delora_w_norm", a.shape[1], "inputs")
        return DeLora(a, b, strength, norms)

    return _weights(modules, update)


def beft(fields: Fields, modules: Modules) -> Updates:
    """BEFT: biases alone."""
    return {
        f"{module}.bias": ModuleUpdate(Added(factors.get("beft_bias")))
        for module, factors in modules.items()
    }


def _weights(modules: Modules, update: Callable[[Factors], Update]) -> Updates:
    return {
        f"{module}.weight": ModuleUpdate(update(factors)) for module, factors in modules.items()
    }


def _alphas(fields: Fields, modules: Modules) -> dict[str, float]:
    alpha = fields.number("alpha", 8)
    return by_module(modules, fields.numbers("alpha_pattern"), alpha, fields.where)


def _is_feedforward(module: str, named: tuple[str, ...], as_pattern: bool, where: str) -> bool:
    if not as_pattern:
        return any(module.endswith(name) for name in named)
    return bool(named) and by_module([module], {named[0]: 1}, 0, where)[module] == 1
