"""What a layout says of every output, as one word."""

from wdecomp.layouts import Layout


def said(found: Layout, outputs: int) -> str:
    """The labels of the outputs in order: qqqkkkvvv where each is in exactly one part."""
    word = [""] * outputs
    for part in found.parts:
        for i in (i for piece in part.outputs or () for i in piece):
            word[i] += part.label
    return "".join(word)
