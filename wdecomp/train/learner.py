"""What is trained: a transformers model and its tokenizer from a local folder, looked over first.

Nothing is fetched and no code of the folder is run.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from wdecomp.errors import TrainingError, some
from wdecomp.names import place
from wdecomp.train.data import Dataset
from wdecomp.train.export import quiet
from wdecomp.train.tasks import MODELS

LONGEST = 256  # tokens, where nothing else is asked for: the paper's cut-off
OFFLINE = {"local_files_only": True, "trust_remote_code": False}
# What transformers raises for a folder that is not what it should be.
UNREADABLE = (
    *(OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ImportError),
    SafetensorError,
)


@dataclass(frozen=True)
class Learner:
    """A model and what goes with it.

    Attributes:
        model: in training mode, in the precision that was asked for; its heads in float32.
        tokenizer: of the same folder.
        heads: last names of modules that the base has not, and that are trained whole.
        pad: the token that fills up a batch.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    heads: tuple[str, ...]
    pad: int

    def require_known(self, tokens: Iterable[int]) -> None:
        """Raises TrainingError if the model has no vector for one of these tokens."""
        embeddings: Any = self.model.get_input_embeddings()
        highest, known = max(tokens), len(embeddings.weight)
        if highest >= known:
            raise TrainingError(
                f"{self.model.name_or_path}: its tokenizer gives the token {highest}, the model "
                f"has {known}. They are not of one model."
            )


def load_learner(
    folder: Path, dataset: Dataset, seed: int, dtype: torch.dtype = torch.float32
) -> Learner:
    """The model for a dataset's task and its tokenizer; a new head's numbers follow from the seed.

    The base is loaded in `dtype`.

    Raises:
        TrainingError: one of them is not there, or the model has not all its numbers.
    """
    if not (folder / "config.json").is_file():
        raise TrainingError(
            f"{folder}: has no config.json, the folder of a transformers model was expected."
        )
    with quiet():
        tokenizer = _tokenizer(folder)
        model, lost = _model(folder, dataset, seed, dtype)
    if model.config.is_encoder_decoder and dataset.task != "classify":
        raise TrainingError(
            f"{folder}: is an encoder with a decoder, a model with only one of them was expected "
            f"for {dataset.task}."
        )
    heads = _heads(model, lost) if dataset.task == "classify" else ()
    _require_weights(folder, lost, heads)
    _require_finite(folder, model)
    pad = _padding(folder, model, tokenizer, dataset)
    last = tuple(sorted({head.rpartition(".")[2] for head in heads}))
    _widen(model, last)
    return Learner(model.train(), tokenizer, last, pad)


def text_length(learner: Learner, asked: int | None) -> int:
    """How many tokens of a text are used.

    Raises:
        TrainingError: more are asked for than the model has positions.
    """
    positions = getattr(learner.model.config, "max_position_embeddings", None) or LONGEST * 2**40
    most = min(positions, learner.tokenizer.model_max_length)
    if asked is not None and asked > most:
        raise TrainingError(
            f"max_length: is {asked}, at most {most} was expected. The model takes no more."
        )
    return asked or min(LONGEST, most)


def common_targets(model: PreTrainedModel) -> tuple[str, ...]:
    """The last names of the model's query and value projections."""
    return default_targets(
        name
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
    )


def default_targets(modules: Iterable[str]) -> tuple[str, ...]:
    """Last names of a model's query and value projections; of its fused ones if it has no others.

    >>> default_targets(["encoder.layer.0.attention.self.query", "encoder.layer.0.output.dense"])
    ('query',)

    Raises:
        TrainingError: no module's name is known for one of these.
    """
    kinds: dict[str, set[str]] = {}
    for module in modules:
        if module:
            kind = place(f"{module}.weight").module
            kinds.setdefault(kind, set()).add(module.rpartition(".")[2])
    found = kinds.get("q", set()) | kinds.get("v", set()) or kinds.get("qkv", set())
    if not found:
        raise TrainingError(
            "targets: are not given, and no module of this model has a known name of a query or "
            "value projection. Name some with --targets."
        )
    return tuple(sorted(found))


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **OFFLINE)
    except UNREADABLE as error:
        raise _unreadable(folder, "tokenizer", error) from None
    files = list(tokenizer.vocab_files_names.values())
    # transformers makes an empty tokenizer where a BERT has none.
    if files and not any((folder / name).is_file() for name in files):
        raise TrainingError(f"{folder}: has no tokenizer, {' or '.join(files)} was expected.")
    return tokenizer


def _model(folder: Path, dataset: Dataset, seed: int, dtype: torch.dtype) -> tuple[Any, set[str]]:
    """The model, and the names of its parameters that the folder has no numbers for."""
    more: dict[str, Any] = {"torch_dtype": dtype}
    if dataset.task == "classify":
        names = dict(enumerate(dataset.labels))
        more |= {"num_labels": len(names), "id2label": names, "ignore_mismatched_sizes": True}
        more["label2id"] = {label: i for i, label in names.items()}
    torch.manual_seed(seed)
    try:
        model, info = MODELS[dataset.task].from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, **OFFLINE, **more
        )
    except UNREADABLE as error:
        raise _unreadable(folder, f"model for {dataset.task}", error) from None
    return model, {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}


def _heads(model: PreTrainedModel, lost: set[str]) -> tuple[str, ...]:
    """What stands beside the base, and what of the base is new: a pooler, where it had none."""
    beside = {
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    }
    poolers = {name.rpartition(".dense.")[0] for name in lost if place(name).module == "pooler"}
    return tuple(sorted(beside | (poolers - {""})))


def _widen(model: PreTrainedModel, heads: tuple[str, ...]) -> None:
    """Puts what is trained whole into float32, and what comes to it."""

    def widened(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.float() if isinstance(x, Tensor) else x for x in inputs)

    if model.dtype == torch.float32:
        return
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in heads:
            module.float().register_forward_pre_hook(widened)


def _require_weights(folder: Path, lost: set[str], heads: tuple[str, ...]) -> None:
    """That all but new heads, and poolers that nothing is pooled by, comes from the folder."""
    expected = (f"{head}." for head in heads)
    wanted = {
        name
        for name in lost.difference(*([n for n in lost if n.startswith(h)] for h in expected))
        if place(name).module != "pooler"
    }
    if wanted:
        raise TrainingError(
            f"{folder}: has no weights, or others, for {some(sorted(wanted))}, all were expected. "
            "It may be a model for another task: see --task."
        )


def _require_finite(folder: Path, model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        count = int((~torch.isfinite(parameter)).sum())
        if count:
            raise TrainingError(
                f"{folder}: {name} has {count} numbers that are not finite, none was expected. "
                "Nothing can be trained from there."
            )


def _padding(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset
) -> int:
    """The padding token. Where a mask hides it, any will do; decoders classify before the first."""
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = tokenizer.eos_token_id
    if dataset.task != "classify":
        return pad or 0
    if pad is None:
        raise TrainingError(
            f"{folder}: its tokenizer has no padding and no end token, one was expected for "
            "classify. Add a pad_token to tokenizer_config.json."
        )
    model.config.pad_token_id = pad
    return int(pad)


def _unreadable(folder: Path, what: str, error: Exception) -> TrainingError:
    reason = str(error).strip().partition("\n")[0]
    return TrainingError(f"{folder}: transformers reads no {what} from it ({reason}).")
