"""Quantised storage: which tensors of a file are one weight together, and its numbers by rows."""

from wdecomp.checkpoint.quantized.gather import gather
from wdecomp.checkpoint.quantized.tensor import Decoder, QuantizedTensor

__all__ = ["Decoder", "QuantizedTensor", "gather"]
