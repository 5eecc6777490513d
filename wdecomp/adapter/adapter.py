"""What every dialect is translated into."""

from dataclasses import dataclass, field

from wdecomp.adapter.change import Update
from wdecomp.adapter.low_rank import ExpertStack
from wdecomp.adapter.updates import Magnitude
from wdecomp.checkpoint import PlainTensor


@dataclass(frozen=True)
class ModuleUpdate:
    """What an adapter does to one parameter of its base."""

    update: Update | ExpertStack
    magnitude: Magnitude | None = None
    of_embedding: bool = False  # the base stores it (vocabulary, dim), whatever its name is

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """All that is to be read of the adapter."""
        return (*self.update.tensors, *([self.magnitude.values] if self.magnitude else []))


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to which parameter of its base.

    dialect: who wrote it: "PEFT", "kohya/LyCORIS", "diffusers", ….
    method: as the tables call it: "lora", "dora", "vera", "loha", ….
    updates: by parameter name in the running model, `…q_proj.weight`; for a stack of experts, of
        all of which one LoRA record holds the factors, the parameter's own name.
    replaced: whole parameters (modules_to_save), by parameter name.
    left_out: (key, reason).
    notes: what a reader of the results has to know.
    base: where the base was when the adapter was trained, if it says so.
    flat_names: the names have `_` for `.`, and prefixes for components (kohya).
    """

    dialect: str
    method: str
    updates: dict[str, ModuleUpdate]
    replaced: dict[str, PlainTensor] = field(default_factory=dict)
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    base: str | None = None
    flat_names: bool = False
