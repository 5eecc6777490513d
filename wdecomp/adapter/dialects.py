"""Which dialect an adapter is written in; each becomes the same update records."""

from wdecomp.adapter.adapter import Adapter
from wdecomp.adapter.peft import read_peft
from wdecomp.checkpoint import Checkpoint
from wdecomp.errors import AdapterError


def read_adapter(checkpoint: Checkpoint) -> Adapter:
    """The updates of an adapter of any dialect; the factors stay on disk.

    Raises:
        AdapterError: it cannot be read, for a reason that is named.
    """
    where = str(checkpoint.path)
    config = checkpoint.adapter_config or {}
    if "peft_type" not in config:
        raise AdapterError(
            f"{where}: adapter_config.json has no peft_type, expected a PEFT adapter's."
        )
    return read_peft(checkpoint.tensors, config, where)
