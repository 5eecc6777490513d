"""A checkpoint as an index of named matrices, read by row blocks."""

from wdecomp.checkpoint.container import is_adapter, is_there, open_checkpoint
from wdecomp.checkpoint.direct import past_the_cache
from wdecomp.checkpoint.elements import LoadedTensor, PlainTensor, open_elements, read_whole
from wdecomp.checkpoint.fingerprint import (
    Span,
    check_unchanged,
    crc32,
    is_pinned,
    sample_sha256,
    witnessed,
)
from wdecomp.checkpoint.header import Header, ShardFile, StoredTensor, read_header
from wdecomp.checkpoint.mapping import surviving
from wdecomp.checkpoint.matrix import (
    BLOCK_BYTES,
    Matrix,
    MatrixReader,
    Rectangle,
    core_shape,
    read_matrix,
    spans,
    whole,
)
from wdecomp.checkpoint.page_cache import LOOKED, is_cached
from wdecomp.checkpoint.pieces import Ranges, count, cut
from wdecomp.checkpoint.quantized import QuantizedTensor
from wdecomp.checkpoint.record import Checkpoint
from wdecomp.checkpoint.rows import Weight
from wdecomp.checkpoint.steps import STEP, runs_under, steps_of, weights_beside_steps

__all__ = [
    "BLOCK_BYTES",
    "LOOKED",
    "STEP",
    "Checkpoint",
    "Header",
    "LoadedTensor",
    "Matrix",
    "MatrixReader",
    "PlainTensor",
    "QuantizedTensor",
    "Ranges",
    "Rectangle",
    "ShardFile",
    "Span",
    "StoredTensor",
    "Weight",
    "check_unchanged",
    "core_shape",
    "count",
    "crc32",
    "cut",
    "is_adapter",
    "is_cached",
    "is_pinned",
    "is_there",
    "open_checkpoint",
    "open_elements",
    "past_the_cache",
    "read_header",
    "read_matrix",
    "read_whole",
    "runs_under",
    "sample_sha256",
    "spans",
    "steps_of",
    "surviving",
    "weights_beside_steps",
    "whole",
    "witnessed",
]
