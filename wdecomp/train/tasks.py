"""The three things a model is trained to do here: token ids of a row, and the loss of a batch.

    pairs     find the other half of each pair among those of the batch
    classify  name the label of a text
    lm        continue a text, or a prompt with its completion

Texts are cut at a fixed number of tokens and padded, on the right, to the longest of their batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from wdecomp.errors import TrainingError
from wdecomp.train.data import Dataset, Row, Task

MODELS: dict[Task, Any] = {
    "pairs": AutoModel,
    "classify": AutoModelForSequenceClassification,
    "lm": AutoModelForCausalLM,
}
SCALE = 20.0  # of the cosines of pairs, as sentence-transformers has it
NO_LOSS = -100  # the target that cross-entropy leaves out


@dataclass(frozen=True)
class Example:
    """A row in token ids.

    Attributes:
        ids: of the text, the first text of a pair, or prompt and completion together.
        other: of the second text of a pair.
        label: number of the label, for classify.
        prompt: how many of the first ids no loss is taken of, for lm.
    """

    ids: list[int]
    other: list[int] | None = None
    label: int | None = None
    prompt: int = 0

    def tokens(self) -> list[int]:
        """All ids."""
        return self.ids + (self.other or [])


Loss = Callable[[PreTrainedModel, Sequence[Example]], Tensor]


def encode(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Example]:
    """Every row in at most `max_length` tokens.

    Raises:
        TrainingError: a row is left without a token to learn.
    """
    if dataset.task == "lm":
        return [_continuation(row, tokenizer, max_length) for row in dataset.rows]
    columns = zip(*(row.texts for row in dataset.rows), strict=True)
    ids = [
        tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
        for texts in columns
    ]
    _require_tokens(dataset.rows, ids)
    if dataset.task == "pairs":
        return [Example(*pair) for pair in zip(*ids, strict=True)]
    numbers = {label: i for i, label in enumerate(dataset.labels)}
    labels = [numbers[str(row.label)] for row in dataset.rows]
    return [Example(each, label=label) for each, label in zip(ids[0], labels, strict=True)]


def loss_of(task: Task, pad: int) -> Loss:
    """The loss of a model on a batch of this task, padded with the token `pad`."""
    losses = {"pairs": pairs_loss, "classify": classify_loss, "lm": lm_loss}
    chosen = losses[task]
    return lambda model, examples: chosen(model, examples, pad)


def pairs_loss(model: PreTrainedModel, examples: Sequence[Example], pad: int) -> Tensor:
    """The symmetric contrastive loss of the pairs' mean-pooled unit vectors."""
    others = [example.other for example in examples if example.other is not None]
    firsts = [example.ids for example in examples]
    a, b = unit_means(model, firsts + others, pad).chunk(2)
    return contrastive(a, b)


def classify_loss(model: PreTrainedModel, examples: Sequence[Example], pad: int) -> Tensor:
    """The mean cross-entropy of the labels."""
    ids, mask = padded([example.ids for example in examples], pad, device_of(model))
    logits = model(input_ids=ids, attention_mask=mask).logits
    labels = torch.tensor([example.label for example in examples], device=logits.device)
    return F.cross_entropy(logits.float(), labels)


def lm_loss(model: PreTrainedModel, examples: Sequence[Example], pad: int) -> Tensor:
    """The mean cross-entropy of each token after those before it; of completions, where there are.

    The mean is over the tokens of the batch, not over its texts.
    """
    ids, mask = padded([example.ids for example in examples], pad, device_of(model))
    targets = ids.masked_fill(mask == 0, NO_LOSS)
    for row, example in zip(targets, examples, strict=True):
        row[: example.prompt] = NO_LOSS
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), targets[:, 1:].flatten())


def contrastive(a: Tensor, b: Tensor) -> Tensor:
    """The mean cross-entropy of finding each pair's other half within the batch, both ways.

    With unit vectors a_i, b_j (n, hidden) of n pairs and S = 20 · a bᵀ:
    loss = (CE(S, i) + CE(Sᵀ, i)) / 2 (multiple negatives ranking loss, arXiv 1705.00652).
    """
    scores = SCALE * a @ b.T
    own = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def unit_means(model: PreTrainedModel, sentences: Sequence[list[int]], pad: int) -> Tensor:
    """One unit vector per sentence, (n, hidden): the mean of its token vectors, scaled to 1."""
    ids, mask = padded(sentences, pad, device_of(model))
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(2).to(hidden.dtype)
    return F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)


def padded(sentences: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (1 a token, 0 padding), each (n, longest)."""
    longest = max(map(len, sentences))
    ids = torch.tensor([each + [pad] * (longest - len(each)) for each in sentences])
    lengths = torch.tensor([len(each) for each in sentences])
    mask = torch.arange(longest) < lengths.unsqueeze(1)
    return ids.to(device), mask.long().to(device)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter is; a wrapper of a model has no `device` itself."""
    return next(model.parameters()).device


def _continuation(row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Example:
    """A text, or a prompt with its completion, and the token that ends it if there is room."""
    first, *completion = row.texts
    ids: list[int] = list(tokenizer(first)["input_ids"])
    eos = tokenizer.eos_token_id
    prompt = 0
    if completion:
        # A tokenizer that ends every text would end the prompt before its completion.
        ids = ids[:-1] if ids[-1:] == [eos] else ids
        prompt = len(ids)
        ids += tokenizer(completion[0], add_special_tokens=False)["input_ids"]
    if eos is not None and ids[-1:] != [eos]:
        ids.append(eos)
    if len(ids[:max_length]) <= max(prompt, 1):
        raise TrainingError(
            f"{row.where}: the {'prompt' if completion else 'text'} has {prompt or len(ids)} "
            f"tokens of at most {max_length}, and none is left to learn. "
            "Raise --max-length or leave the row out."
        )
    return Example(ids[:max_length], prompt=prompt)


def _require_tokens(rows: Sequence[Row], columns: Sequence[Sequence[list[int]]]) -> None:
    for column in columns:
        for row, ids in zip(rows, column, strict=True):
            if not ids:
                raise TrainingError(
                    f"{row.where}: the tokenizer finds no token in it, one at least was expected."
                )
