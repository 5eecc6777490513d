"""A checkpoint as an index of named matrices, read by row blocks."""

from wdecomp.checkpoint.container import (
    Checkpoint,
    is_adapter,
    is_there,
    open_checkpoint,
    steps_of,
    weights_beside_steps,
)
from wdecomp.checkpoint.header import Header, ShardFile, StoredTensor, read_header
from wdecomp.checkpoint.matrix import (
    BLOCK_BYTES,
    Matrix,
    MatrixReader,
    Rectangle,
    read_whole,
)

__all__ = [
    "BLOCK_BYTES",
    "Checkpoint",
    "Header",
    "Matrix",
    "MatrixReader",
    "Rectangle",
    "ShardFile",
    "StoredTensor",
    "is_adapter",
    "is_there",
    "open_checkpoint",
    "read_header",
    "read_whole",
    "steps_of",
    "weights_beside_steps",
]
