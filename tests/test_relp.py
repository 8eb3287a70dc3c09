"""RelP's rules: values unchanged, relevance conserved, and the gradient that the rules prescribe."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import star_tl as star
from star_tl.attribution.relp import conservation, rules


@pytest.fixture(scope="module")
def double(tiny_folder):
    return star.load_model(str(tiny_folder), dtype="float64")


def test_rules_leave_the_logits_as_they_are(tiny) -> None:
    tokens = torch.randint(5, 500, (2, 17), generator=torch.Generator().manual_seed(0))
    assert torch.equal(tiny.run_with_hooks(tokens, fwd_hooks=rules(tiny)), tiny(tokens))


def test_relevance_is_conserved_at_every_layer(double) -> None:
    tokens = torch.randint(5, 500, (3, 17), generator=torch.Generator().manual_seed(0))
    answer = double(tokens)[:, -1].argmax(-1)
    torch.testing.assert_close(conservation(double, tokens, answer), torch.ones(3), atol=1e-5, rtol=0)


def test_plain_gradients_are_not_conserved(double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("star_tl.attribution.relp.rules", lambda model: [])
    tokens = torch.randint(5, 500, (3, 17), generator=torch.Generator().manual_seed(0))
    answer = double(tokens)[:, -1].argmax(-1)
    assert (conservation(double, tokens, answer) - 1).abs().max() > 0.05


def test_rules_change_the_scores_and_not_the_metric(double) -> None:
    pairs = star.load_pairs("agreement").extraction
    pairs = replace(pairs, pairs=pairs.pairs[:2])
    plain, relp = (star.attribute(double, pairs, method=m, progress=False) for m in ("atp", "relp"))
    assert relp.method == "relp"
    assert not torch.allclose(plain.component("mlp_out"), relp.component("mlp_out"))
    torch.testing.assert_close(relp.metric_clean, plain.metric_clean)


def test_unknown_method_names_the_known_ones(tiny) -> None:
    with pytest.raises(star.StarError, match="relp"):
        star.attribute(tiny, star.load_pairs("agreement"), method="relpp")
