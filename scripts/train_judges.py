"""Train the judges on sentences that people labelled, and measure them on sentences they never saw.

    pip install "star_tl[judges,dev]"
    python scripts/train_judges.py --data FOLDER [--out star_tl/data/judges] [--embeddings CACHE.npz]

FOLDER holds ``offmychest/labeled_training_set.csv``, ``stanford_politeness/*.annotated.csv`` and
``goemotions/{train.tsv,dev.tsv,emotions.txt}`` as their authors publish them. A quarter of OffMyChest and of the
politeness requests, chosen by a hash of the text so that copies stay together, and GoEmotions' dev part are held out.
Only numbers are written, no word of the data; the card beside them gets the table of results, which is printed too.
"""

from __future__ import annotations

import argparse
import csv
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from scipy import sparse, stats

from star_tl.evaluation.judges import BUCKETS, FOLDER, embed, ngram_buckets

LABELS = {
    "support": "offmychest",
    "emotional support": "offmychest",
    "disclosure": "offmychest",
    "politeness": "politeness",
    "gratitude": "goemotions",
    "joy": "goemotions",
    "caring": "goemotions",
    "approval": "goemotions",
    "disapproval": "goemotions",
}
RESULTS = "## Held-out results\n\n"
TABLE = """By `scripts/train_judges.py`: AUC with its 95 % bootstrap interval over texts, and expected calibration error
(ECE, ten bins, both classes weighing alike). C is the penalty that cross-validation within the training part chose.

| label | data | features | trained on | held out | with the label | AUC | 95 % | ECE | C |
|---|---|---|---|---|---|---|---|---|---|"""
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # scikit-learn's C: the smaller, the stronger the ridge
ESCAPED = re.compile(r"<U\+([0-9A-Fa-f]{4,8})>")
MASKED = re.compile(r"\[(?:NAME|RELIGION)\]|<url>")


@dataclass(frozen=True)
class Labelled:
    """Texts with one column of labels each; NaN where a text's label is not clear enough to learn from."""

    texts: list[str]
    labels: pd.DataFrame
    heldout: Bool[np.ndarray, " text"]
    source: pd.Series


def read_all(data: Path) -> dict[str, Labelled]:
    """The three data sets, by name."""
    return {"offmychest": offmychest(data), "politeness": politeness(data), "goemotions": goemotions(data)}


def offmychest(data: Path) -> Labelled:
    """OffMyChest: support, emotional support, and emotional or informational disclosure."""
    table = pd.read_csv(data / "offmychest" / "labeled_training_set.csv")
    texts = [_clean(text) for text in table.full_text]
    labels = pd.DataFrame(
        {
            "support": table.Support,
            "emotional support": table.Emo_support,
            "disclosure": table[["Emotional_disclosure", "Information_disclosure"]].max(axis=1),
        }
    ).astype(float)
    return Labelled(texts, labels, _quarter(texts), pd.Series("offmychest", labels.index))


def politeness(data: Path) -> Labelled:
    """Requests: the politest quarter of each community against its least polite, as the authors do; others NaN."""
    parts = []
    for name in ("wikipedia", "stack-exchange"):
        part = pd.read_csv(data / "stanford_politeness" / f"{name}.annotated.csv")
        low, high = part["Normalized Score"].quantile([0.25, 0.75])
        score = part["Normalized Score"]
        label = np.where(score >= high, 1.0, np.where(score <= low, 0.0, np.nan))
        parts.append(part.assign(label=label, source=name))
    table = pd.concat(parts, ignore_index=True)
    texts = [_clean(text) for text in table.Request]
    return Labelled(texts, table[["label"]].set_axis(["politeness"], axis=1), _quarter(texts), table.source)


def goemotions(data: Path) -> Labelled:
    """GoEmotions: one column per emotion of interest; its dev part is held out."""
    folder = data / "goemotions"
    emotions = (folder / "emotions.txt").read_text(encoding="utf-8").split()
    parts = [
        pd.read_csv(folder / f"{part}.tsv", sep="\t", names=["text", "ids", "id"], quoting=csv.QUOTE_NONE).assign(
            heldout=part == "dev"
        )
        for part in ("train", "dev")
    ]
    table = pd.concat(parts, ignore_index=True)
    chosen = [{emotions[int(i)] for i in str(ids).split(",")} for ids in table.ids]
    wanted = [name for name, source in LABELS.items() if source == "goemotions"]
    labels = pd.DataFrame({name: [float(name in emotion) for emotion in chosen] for name in wanted})
    texts = [_clean(text) for text in table.text]
    heldout = table.heldout.to_numpy()
    seen = {text for text, dev in zip(texts, heldout, strict=True) if not dev}
    copies = [i for i, (text, dev) in enumerate(zip(texts, heldout, strict=True)) if dev and text in seen]
    labels.iloc[copies] = np.nan
    return Labelled(texts, labels, heldout, pd.Series("goemotions", labels.index))


def _clean(text: str) -> str:
    """Escaped characters decoded (they are Windows-1252 where below 0x100), masks of names and links removed."""

    def character(match: re.Match[str]) -> str:
        code = int(match[1], 16)
        return bytes([code]).decode("cp1252", "ignore") if code < 0x100 else chr(code)

    return " ".join(MASKED.sub(" ", ESCAPED.sub(character, str(text))).split())


def _quarter(texts: list[str]) -> Bool[np.ndarray, " text"]:
    return np.array([zlib.crc32(b"held out " + text.casefold().encode()) % 4 == 0 for text in texts])


def ngram_matrix(texts: list[str]) -> sparse.csr_matrix:
    """One row a text, scaled to unit length, as :class:`star_tl.evaluation.judges.Judge` reads texts."""
    rows = [ngram_buckets(text) for text in texts]
    lengths = np.array([len(r) for r in rows])
    values = np.repeat(1 / np.sqrt(np.maximum(lengths, 1)), lengths)
    starts = np.concatenate([[0], lengths.cumsum()])
    return sparse.csr_matrix((values, np.concatenate(rows), starts), shape=(len(texts), BUCKETS))


def auc(scores: Float[np.ndarray, " text"], labels: Float[np.ndarray, " text"]) -> float:
    """Probability that a labelled text scores above one that is not (Mann & Whitney's U), ties counting half."""
    ranks = stats.rankdata(scores)
    n, m = int(labels.sum()), int((1 - labels).sum())
    return float((ranks[labels == 1].sum() - n * (n + 1) / 2) / (n * m))


def auc_interval(scores: np.ndarray, labels: np.ndarray, resamples: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval over texts."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(labels), size=len(labels)) for _ in range(resamples)]
    low, high = np.quantile([auc(scores[d], labels[d]) for d in draws], [0.025, 0.975])
    return float(low), float(high)


def calibration_error(scores: np.ndarray, labels: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599) in bins of equal width.

    Both classes weigh alike: the judges' probabilities are for an even prior.
    """
    weights = np.where(labels == 1, 0.5 / labels.sum(), 0.5 / (1 - labels).sum())
    where = np.minimum((scores * bins).astype(int), bins - 1)
    gaps = [abs((weights[where == b] * (scores - labels)[where == b]).sum()) for b in range(bins)]
    return float(sum(gaps))


def balanced_log_likelihood(model: Any, features: np.ndarray | sparse.csr_matrix, labels: np.ndarray) -> float:
    """Mean log-probability of the true labels in nats, both classes weighing alike."""
    chances = model.predict_proba(features)[np.arange(len(labels)), labels.astype(int)]
    logs = np.log(chances.clip(1e-12))
    return float((logs[labels == 1].mean() + logs[labels == 0].mean()) / 2)


def fit(features: np.ndarray | sparse.csr_matrix, labels: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Coefficients, intercept and the penalty that cross-validation on the training part chose, classes balanced."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    solver = "liblinear" if sparse.issparse(features) else "lbfgs"
    model = LogisticRegression(class_weight="balanced", solver=solver, max_iter=2000)
    search = GridSearchCV(model, {"C": PENALTIES}, scoring=balanced_log_likelihood, cv=4).fit(features, labels)
    best = search.best_estimator_
    return best.coef_[0], float(best.intercept_[0]), float(search.best_params_["C"])


def embeddings_of(data: dict[str, Labelled], cache: Path | None) -> dict[str, np.ndarray]:
    """Sentence embeddings of every data set, kept in a file where one is named."""
    if cache is not None and cache.is_file():
        return dict(np.load(cache))
    found = {name: embed(part.texts).numpy() for name, part in data.items()}
    if cache is not None:
        np.savez(cache, **found)
    return found


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, required=True)
    ap.add_argument("--out", type=Path, default=FOLDER)
    ap.add_argument("--embeddings", type=Path, help="keep the embeddings here between runs")
    args = ap.parse_args()

    data = read_all(args.data)
    vectors = embeddings_of(data, args.embeddings)
    hashed = {name: ngram_matrix(part.texts) for name, part in data.items()}
    lines = []
    for kind, matrices, dtype in (("embedding", vectors, torch.float32), ("ngrams", hashed, torch.float16)):
        coefficients, intercepts = [], []
        for label, source in LABELS.items():
            part, x = data[source], matrices[source]
            y = part.labels[label].to_numpy()
            train, test = ~part.heldout & ~np.isnan(y), part.heldout & ~np.isnan(y)
            weights, intercept, penalty = fit(x[train], y[train])
            coefficients.append(torch.tensor(weights, dtype=dtype))
            intercepts.append(intercept)
            scores = 1 / (1 + np.exp(-(x @ coefficients[-1].double().numpy() + intercept)))
            for name in dict.fromkeys(part.source):
                rows = test & (part.source == name).to_numpy()
                low, high = auc_interval(scores[rows], y[rows])
                lines.append(
                    f"| {label} | {name} | {kind} | {train.sum()} | {rows.sum()} | {y[rows].mean():.0%} | "
                    f"{auc(scores[rows], y[rows]):.3f} | {low:.3f} to {high:.3f} | "
                    f"{calibration_error(scores[rows], y[rows]):.3f} | {penalty:g} |"
                )
                print(lines[-1], flush=True)
        tensors = {"coefficients": torch.stack(coefficients), "intercepts": torch.tensor(intercepts)}
        save_file(tensors, args.out / f"{kind}.safetensors", metadata={"labels": ",".join(LABELS)})
    card = args.out / "CARD.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8").split(RESULTS)[0]
        card.write_text(text + RESULTS + "\n".join([TABLE, *sorted(lines)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
