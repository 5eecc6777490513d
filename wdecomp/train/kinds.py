"""How each kind of layer applies a matrix (out, in) to its input: what a method need not know.

A convolution's inputs are the in·k·k weights of one output; an embedding's outputs are the numbers
of a token's vector and its inputs the tokens, so that its matrix is its table turned round.
"""

from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from wdecomp.errors import TrainingError
from wdecomp.train.nf4 import Nf4Linear, through


class Kind(Protocol):
    """A kind of layer; its functions are given the layer, and own nothing."""

    @property
    def folds(self) -> bool:
        """Whether the output is x Wᵀ + bias, features last."""
        ...

    def matrix(self, layer: Any) -> Tensor:
        """W0, (out, in): a view of the layer's weight."""
        ...

    def stored(self, matrix: Tensor, layer: Any) -> Tensor:
        """A matrix (out, in) in the shape of the layer's weight."""
        ...

    def through(self, x: Tensor, matrix: Tensor, layer: Any) -> Tensor:
        """What a matrix (any, in) in place of W0 makes of x, without the bias."""
        ...

    def after(self, narrow: Tensor, b: Tensor) -> Tensor:
        """What `through` made of A, with rank features, under B (out, rank)."""
        ...

    def across(self, vector: Tensor) -> Tensor:
        """A number for each output feature, so shaped that it meets them in an output."""
        ...


class LinearKind:
    """`nn.Linear`: y = x Wᵀ + bias."""

    folds = True

    def matrix(self, layer: Any) -> Tensor:
        """The weight as it is."""
        weight: Tensor = layer.weight
        return weight

    def stored(self, matrix: Tensor, layer: Any) -> Tensor:
        """As it is."""
        return matrix

    def through(self, x: Tensor, matrix: Tensor, layer: Any) -> Tensor:
        """X Wᵀ."""
        return F.linear(x, matrix)

    def after(self, narrow: Tensor, b: Tensor) -> Tensor:
        """H Bᵀ."""
        return F.linear(narrow, b)

    def across(self, vector: Tensor) -> Tensor:
        """Features are last."""
        return vector


class Nf4Kind(LinearKind):
    """`Nf4Linear`: W0 is decoded for the moment, and again for the backward pass."""

    def through(self, x: Tensor, matrix: Tensor, layer: Any) -> Tensor:
        """X Wᵀ; W0 is not kept, other matrices are."""
        return through(x, matrix)


class TransposedKind(LinearKind):
    """GPT-2's Conv1D, a linear layer with its weight stored as (in, out)."""

    def matrix(self, layer: Any) -> Tensor:
        """The weight turned round."""
        weight: Tensor = layer.weight
        return weight.T

    def stored(self, matrix: Tensor, layer: Any) -> Tensor:
        """Turned round."""
        return matrix.T


class ConvolutionKind:
    """`nn.Conv2d`: A convolves to rank channels, B mixes them."""

    folds = False

    def matrix(self, layer: Any) -> Tensor:
        """(out, in·k·k)."""
        weight: Tensor = layer.weight
        return weight.flatten(1)

    def stored(self, matrix: Tensor, layer: Any) -> Tensor:
        """(out, in, k, k)."""
        return matrix.reshape(-1, *layer.weight.shape[1:])

    def through(self, x: Tensor, matrix: Tensor, layer: Any) -> Tensor:
        """The layer's own convolution, padding and strides."""
        convolve: Tensor = layer._conv_forward(x, self.stored(matrix, layer), None)
        return convolve

    def after(self, narrow: Tensor, b: Tensor) -> Tensor:
        """A 1×1 convolution."""
        return F.conv2d(narrow, b[:, :, None, None])

    def across(self, vector: Tensor) -> Tensor:
        """Features stand before height and width."""
        return vector[:, None, None]


class EmbeddingKind(LinearKind):
    """`nn.Embedding`: a token's vector is a column of the matrix."""

    folds = False

    def matrix(self, layer: Any) -> Tensor:
        """(dim, tokens)."""
        weight: Tensor = layer.weight
        return weight.T

    def stored(self, matrix: Tensor, layer: Any) -> Tensor:
        """(tokens, dim)."""
        return matrix.T

    def through(self, x: Tensor, matrix: Tensor, layer: Any) -> Tensor:
        """The columns that x names."""
        return F.embedding(x, matrix.T, layer.padding_idx)


def kind_of(name: str, layer: nn.Module) -> Kind:
    """How a layer is adapted.

    Raises:
        TrainingError: it has no matrix that can be adapted.
    """
    if isinstance(layer, nn.Linear):
        return LinearKind()
    if isinstance(layer, Nf4Linear):
        return Nf4Kind()
    if isinstance(layer, Conv1D):
        return TransposedKind()
    if isinstance(layer, nn.Embedding):
        return EmbeddingKind()
    if isinstance(layer, nn.Conv2d):
        if layer.groups > 1:
            raise TrainingError(
                f"{name}: is a convolution in {layer.groups} groups, one in a single group was "
                "expected. Its outputs see different inputs, so that it has no common A."
            )
        return ConvolutionKind()
    raise TrainingError(
        f"{name}: is a {type(layer).__name__}, expected a Linear (or one in NF4), Conv1D, "
        "Conv2d or Embedding layer."
    )
