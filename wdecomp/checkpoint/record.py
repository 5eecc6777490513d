"""What is known of a checkpoint once it is open, before any number is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wdecomp.checkpoint.header import ShardFile
from wdecomp.checkpoint.rows import Weight


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one run at one step: an index of stored tensors, nothing read yet.

    tensors: by name; those of a pipeline are `<component>.<name>`.
    config: the model's config.json; a pipeline has none of its own.
    components: the config.json of each component of a pipeline.
    adapter_config: what stands beside an adapter of a dialect that has one.
    metadata: what the writer of the file noted in it.
    left_out: (tensor, reason).
    """

    path: Path
    tensors: dict[str, Weight]
    shards: tuple[ShardFile, ...]
    config: dict[str, Any] = field(default_factory=dict)
    adapter_config: dict[str, Any] | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    is_adapter: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    components: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def model_type(self) -> str | None:
        """What transformers calls the architecture, where a config says so."""
        return _model_type(self.config)

    def config_of(self, parameter: str) -> dict[str, Any]:
        """The config of the component that a parameter is of, or the checkpoint's."""
        component, dot, _ = parameter.partition(".")
        return self.components.get(component, self.config) if dot else self.config

    def model_type_of(self, parameter: str) -> str | None:
        """The same, of the architecture."""
        return _model_type(self.config_of(parameter))


def _model_type(config: Mapping[str, Any]) -> str | None:
    value = config.get("model_type")
    return value if isinstance(value, str) else None
