"""Which dialect an adapter is written in; each becomes the same update records."""

from wdecomp.adapter.adapter import Adapter
from wdecomp.adapter.diffusers import is_diffusers, read_diffusers
from wdecomp.adapter.foreign_dora import (
    is_fsdp_qlora,
    is_nvlabs,
    read_fsdp_qlora,
    read_nvlabs,
)
from wdecomp.adapter.kohya import is_kohya, read_kohya
from wdecomp.adapter.mlx import is_mlx, read_mlx
from wdecomp.adapter.peft import read_peft
from wdecomp.checkpoint import Checkpoint, QuantizedTensor
from wdecomp.errors import AdapterError, some


def read_adapter(checkpoint: Checkpoint) -> Adapter:
    """The updates of an adapter of any dialect; the factors stay on disk.

    Raises:
        AdapterError: it cannot be read, for a reason that is named.
    """
    where = str(checkpoint.path)
    tensors = {n: t for n, t in checkpoint.tensors.items() if not isinstance(t, QuantizedTensor)}
    config = checkpoint.adapter_config or {}
    if config.get("peft_type", "DORA") != "DORA":
        return read_peft(tensors, config, where)
    if is_nvlabs(tensors, config):
        return read_nvlabs(tensors, config, where)
    if is_fsdp_qlora(tensors):
        return read_fsdp_qlora(tensors, where)
    if is_mlx(tensors, config):
        return read_mlx(tensors, config, where)
    if is_diffusers(tensors, checkpoint.metadata):
        return read_diffusers(tensors, checkpoint.metadata, where)
    if is_kohya(tensors):
        return read_kohya(tensors, where, checkpoint.metadata)
    none = checkpoint.adapter_config is None
    there = "no adapter_config.json beside it" if none else "no peft_type in its config"
    raise AdapterError(
        f"{where}: holds an adapter ({some(list(tensors))}) of no dialect that is known, and there "
        f"is {there}. Its scaling is not known without one."
    )
