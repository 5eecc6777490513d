"""Every exception that wdecomp raises on purpose.

WdecompError
├── CheckpointError   a file or folder is missing, truncated, or not what it claims to be
├── AdapterError      an adapter's config and tensors contradict each other, or have no static merge
├── PairingError      two checkpoints do not describe one model
├── DegenerateError   the numbers admit no answer (a zero column has no direction)
├── ResultsError      a results folder is not one, is another schema's, or belongs to another run
├── TrainingError     a training run cannot start, or its loss is no longer a number
├── DeviceError       sums cannot be formed on the device that was asked for
├── ClusterError      a scheduler is not to be had, or a worker sees other things than the run
├── MissingExtraError a command needs packages that an extra of wdecomp installs
└── UnfinishedError   a run stopped before its end, and the same command goes on with it

A message reads "where: what is, what was expected. What to do."; the CLI prints it as one line
and exits with code 1, with 75 where it is an UnfinishedError: nothing has to be mended, only gone
on with. Mistakes in calling code stay TypeError and ValueError.
"""

from collections.abc import Sequence


class WdecompError(Exception):
    """Something about the user's input that wdecomp can name in one line."""


class CheckpointError(WdecompError):
    """A file or folder is missing, truncated, or not what it claims to be."""


class AdapterError(WdecompError):
    """An adapter's config and tensors contradict each other, or have no static merge."""


class PairingError(WdecompError):
    """Two checkpoints do not describe one model."""


class DegenerateError(WdecompError):
    """The numbers admit no answer."""


class ResultsError(WdecompError):
    """A results folder is not one, is another schema's, or belongs to another run."""


class TrainingError(WdecompError):
    """A training run cannot start, or its loss is no longer a number."""


class DeviceError(WdecompError):
    """Sums cannot be formed on the device that was asked for."""


class ClusterError(WdecompError):
    """A scheduler is not to be had, or a worker sees other things than the run."""


class MissingExtraError(WdecompError):
    """A command needs packages that an extra of wdecomp installs."""


class UnfinishedError(WdecompError):
    """A run stopped before its end, and the same command goes on with it."""


def some(names: Sequence[str], shown: int = 3) -> str:
    """At most three examples, then how many more.

    >>> some(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    head = ", ".join(names[:shown])
    return head if len(names) <= shown else f"{head} and {len(names) - shown} more"
