"""RelP's rules: values unchanged, relevance conserved, and the gradient that the rules prescribe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import write_random
from transformers import PreTrainedTokenizerFast

import star_tl as star
from star_tl.attribution.relp import conservation, rules
from star_tl.errors import StarError
from star_tl.models.bridge import attached


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


def test_gate_and_activation_share_what_the_mlp_passes_back(double) -> None:
    mlp, name = double.blocks[1].mlp, "blocks.1.mlp"
    x, wanted = torch.randn(
        2, 2, 5, double.cfg.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    with torch.enable_grad(), double.hooks(fwd_hooks=[hook for hook in rules(double) if hook[0].startswith(name)]):
        (found,) = torch.autograd.grad(mlp(x.requires_grad_()), x, wanted)
    gate, linear, back = x @ mlp.W_gate, x @ mlp.W_in, wanted @ mlp.W_out.T
    by_gate, by_linear = (back * gate.sigmoid() * linear) @ mlp.W_gate.T, (back * gate * gate.sigmoid()) @ mlp.W_in.T
    torch.testing.assert_close(found, (by_gate + by_linear) / 2)


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Callable[..., object]:
    def load(family: str) -> object:
        folder: Path = write_random(family, tmp_path_factory.mktemp(family), tokenizer)
        return star.load_model(folder, device="cpu", backend="bridge")

    return load


# Norms by TransformerLens and by HuggingFace, before and after, without weights; plain, gated and fused MLPs.
@pytest.mark.parametrize("family", ["gpt2", "pythia", "phi-3", "granite", "olmo", "olmo-2", "gemma-3", "smollm-3"])
def test_on_a_bridge_relevance_is_conserved_and_values_are_untouched(
    bridge, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bridge(family)
    tokens = torch.randint(5, 500, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.enable_grad(), attached(model, rules(model)):
        ruled = model(tokens)
    assert torch.equal(ruled, model(tokens))
    for module in model.modules():
        if module._parameters.get("bias") is not None:
            module._parameters["bias"].zero_()
    answer = model(tokens)[:, -1].argmax(-1)
    torch.testing.assert_close(conservation(model, tokens, answer), torch.ones(3), atol=1e-5, rtol=0)
    monkeypatch.setattr("star_tl.attribution.relp.rules", lambda model: [])
    assert (conservation(model, tokens, answer) - 1).abs().max() > 0.05


def test_parts_of_a_bridge_without_rules_are_refused(bridge) -> None:
    olmo = bridge("olmo")
    olmo.blocks[1].attn.original_component.config.clip_qkv = 8.0
    for model in (bridge("mixtral"), bridge("bitnet"), olmo):
        with pytest.raises(StarError, match=r"only: use method='atp' for this model\.$"):
            star.attribute(model, star.load_pairs("agreement"), method="relp")


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
