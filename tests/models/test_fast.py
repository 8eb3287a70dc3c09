"""The fast forward: made once, true to weights that are edited or replaced, and a recorded step that can be trusted."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from by_hand import unequal_pairs
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

import star_tl as star
from star_tl.attribution import drift, passes
from star_tl.attribution.align import prepare
from star_tl.attribution.drift import drift_gradients
from star_tl.attribution.rows import pair_batch
from star_tl.errors import StarError
from star_tl.generation.decoding import StockPass, begin
from star_tl.models.fast import attention, backward, decode
from star_tl.models.fast import forward as fast
from star_tl.models.fast.attention import attend_masked
from star_tl.models.fast.decode import LlamaPass, RecordedStep
from star_tl.models.fast.forward import LlamaForward, llama_forward

END = 9
PROMPTS = ("My sister lost her job.", "no", "Would you sell the bicycle?")
CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture
def own(write_llama):
    """A model that may be spoiled."""
    return star.load_model(write_llama())


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(5, 600, (3, END), generator=torch.Generator().manual_seed(1))
    return tokens, torch.arange(END) >= torch.arange(3)[:, None] * 2


def same_as_its_own(model) -> Tensor:
    """Logits of a pass, checked against the model's own forward, which knows nothing of the fast one."""
    tokens, mask = batch()
    run, truth = begin(model, [], mask, END, END + 2), StockPass(model, [], mask, END)
    for following in (tokens, tokens[:, :1]):
        found, expected = run(following), truth(following)
        torch.testing.assert_close(found, expected, **CLOSE)
    return found


def test_it_is_made_once_for_a_model(own, monkeypatch) -> None:
    made: list[object] = []
    init = LlamaForward.__init__
    monkeypatch.setattr(LlamaForward, "__init__", lambda self, *args: made.append(self) or init(self, *args))
    star.sample(own, PROMPTS, max_new_tokens=3, progress=False)
    star.sample(own, PROMPTS[:1], max_new_tokens=3, progress=False)
    star.attribute(own, unequal_pairs(), progress=False)
    star.attribute(own, unequal_pairs(), method="ig", progress=False)
    assert len(made) == 1
    gone = weakref.ref(own)
    made.clear()
    del own
    # The fixture still holds it; the forward must not be what does.
    assert all(gone() is not held for held in gc.get_referrers(*fast._MADE.values()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_looks_at_no_bias_by_itself(own, monkeypatch, dtype) -> None:
    """On a GPU every such look waits for the device."""
    looks: list[int] = []
    own.to(getattr(torch, dtype), print_details=False)
    star.copy_free_layout(own)
    whole, as_list = Tensor.__bool__, Tensor.tolist
    monkeypatch.setattr(Tensor, "__bool__", lambda self: looks.append(1) or whole(self))
    monkeypatch.setattr(Tensor, "tolist", lambda self: looks.append(1) or as_list(self))
    for _ in range(2):
        looks.clear()
        assert llama_forward(own) is not None
        assert len(looks) <= 1


EDITS: dict[str, Any] = {
    "weights": lambda m: [getattr(m.blocks[1].attn, n).mul_(1.5) for n in ("W_Q", "_W_V", "W_O")],
    "a zero bias": lambda m: m.blocks[1].mlp.b_out.add_(0.3),
    "a zero bias through data": lambda m: m.blocks[2].mlp.b_in.data.add_(0.3),
    "the bias of values": lambda m: m.blocks[1].attn._b_V.add_(0.3),
    "a norm": lambda m: m.blocks[1].ln2.w.mul_(2.0),
    "the embedding": lambda m: m.embed.W_E.mul_(1.5),
}


@torch.no_grad()
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_edits_in_place_are_seen_and_undone(own, edit) -> None:
    before, state = same_as_its_own(own), copy.deepcopy(own.state_dict())
    edit(own)
    assert (same_as_its_own(own) - before).abs().max() > 1e-2
    edit(own)  # a bias that is no longer the one of the last call
    same_as_its_own(own)
    own.load_state_dict(state)
    torch.testing.assert_close(same_as_its_own(own), before, rtol=0, atol=0)
    assert isinstance(begin(own, [], *batch()[1:], END, END), LlamaPass)


def replaced(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(
        1.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)) * parameter.std()
    )


def scaled_block(m: Any) -> Any:
    block = copy.deepcopy(m.blocks[1])
    block.mlp.W_out.data *= 1.5
    return block


REPLACED: dict[str, Any] = {
    "queries": lambda m: setattr(m.blocks[1].attn, "W_Q", replaced(m.blocks[1].attn.W_Q)),
    "output": lambda m: setattr(m.blocks[1].attn, "W_O", replaced(m.blocks[1].attn.W_O)),
    "gate": lambda m: setattr(m.blocks[2].mlp, "W_gate", replaced(m.blocks[2].mlp.W_gate)),
    "down": lambda m: setattr(m.blocks[2].mlp, "W_out", replaced(m.blocks[2].mlp.W_out)),
    "a norm's": lambda m: setattr(m.blocks[2].ln1, "w", replaced(m.blocks[1].ln1.w)),
    "data": lambda m: setattr(m.blocks[1].attn.W_Q, "data", replaced(m.blocks[1].attn.W_Q).data),
    "a block": lambda m: m.blocks.__setitem__(1, scaled_block(m)),
    "a norm without weights": lambda m: setattr(m.blocks[1], "ln2", nn.RMSNorm(32)),
    "a last norm": lambda m: setattr(m, "ln_final", nn.RMSNorm(32)),
    "a torch hook": lambda m: m.blocks[1].mlp.register_forward_hook(lambda module, args, out: 2 * out),
    "a method": lambda m: setattr(m.blocks[1].mlp, "forward", lambda x: 0.5 * x),
}


@torch.no_grad()
@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("replace", REPLACED.values(), ids=REPLACED.keys())
def test_what_was_replaced_is_what_computes(own, replace, used_before: bool) -> None:
    before = same_as_its_own(own) if used_before else StockPass(own, [], batch()[1], END)(batch()[0])
    replace(own)
    assert (same_as_its_own(own) - before).abs().max() > 1e-2
    star.sample(own, PROMPTS, max_new_tokens=3, progress=False)
    star.attribute(own, unequal_pairs(), progress=False)
    star.copy_free_layout(own)
    same_as_its_own(own)


def recording(monkeypatch) -> None:
    """Steps are made as they would be recorded, on the processor."""
    monkeypatch.setattr(decode, "records", lambda device: True)


def test_a_recorded_step_dies_with_its_pass_without_the_cycle_collector(tiny, monkeypatch) -> None:
    recording(monkeypatch)
    tokens, mask = batch()
    vector = torch.ones(1, 32)
    hooks = star.SteeringVector(vector, star.Locus("blocks.1.hook_resid_post"), "t", "x", 1.0, 1, "m", "", "").hooks()
    gc.collect()
    gc.disable()
    try:
        run = begin(tiny, hooks, mask, END, END + 4)
        assert isinstance(run, LlamaPass)
        for following in (tokens, tokens[:, :1], tokens[:, :1]):
            run(following)
        assert run.recorded is not None
        dead = [weakref.ref(run), weakref.ref(run.recorded), weakref.ref(run.layers)]
        held = run.layers.cache.untyped_storage().data_ptr()
        assert run.keep(torch.tensor([0, 2]))
        assert run.layers.cache.untyped_storage().data_ptr() == held, "it is not held twice"
        assert dead[1]() is dead[2]() is None
        run(tokens[:2, :1])
        dead.append(weakref.ref(run.recorded))
        del run
        assert [ref() for ref in dead] == [None] * 4
    finally:
        gc.enable()


@pytest.mark.parametrize("fault", [lambda logits: logits.roll(1, 0), lambda logits: logits * torch.nan])
def test_a_recorded_step_that_differs_is_given_up_with_one_warning(own, monkeypatch, fault) -> None:
    plain = star.generate(own, PROMPTS, max_new_tokens=6, temperature=0, progress=False)
    recording(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert star.generate(own, PROMPTS, max_new_tokens=6, temperature=0, progress=False) == plain
    right, steps = RecordedStep._run, []
    monkeypatch.setattr(RecordedStep, "_run", lambda self: steps.append(1) or fault(right(self)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert star.generate(own, PROMPTS, max_new_tokens=6, temperature=0, progress=False) == plain
    assert [str(w.message) for w in caught] == [
        "A decode step recorded as a CUDA graph was not the same as the plain one: going on without, slower."
    ]
    assert len(steps) == 1


def test_a_row_that_steering_broke_does_not_end_the_recording(own, monkeypatch) -> None:
    recording(monkeypatch)
    vector = star.SteeringVector(
        torch.full((1, 32), 3e38), star.Locus("blocks.1.hook_resid_post"), "t", "x", 1.0, 1, "m", "", ""
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twice = [*vector.hooks(1.0, "generated"), *vector.hooks(1.0, "generated")]  # finite each, and together not
        replies = star.generate(own, PROMPTS, twice, max_new_tokens=4, progress=False)
    assert all(r.broken for r in replies)
    forward = llama_forward(own)
    assert forward is not None
    assert forward.recordable


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_break_where_nothing_was_steered_are_an_error(own, bad: float, count: int) -> None:
    own.blocks[1].mlp.W_out.data[3, 4] = bad
    beside = star.SteeringVector(
        torch.ones(1, 32), star.Locus("blocks.1.hook_resid_post"), "t", "x", 1.0, 1, "m", "", ""
    )
    from star_tl.generation import sampling
    from star_tl.steering.hooks import row_hooks

    message = r"^The model's logits are NaN or infinite where nothing was steered: load it with [^\n]+\.$"
    with pytest.raises(StarError, match=message):
        star.generate(own, PROMPTS[:count], max_new_tokens=4, progress=False)
    with pytest.raises(StarError, match=message):
        list(star.stream(own, PROMPTS[:count], max_new_tokens=4))
    if count > 1:  # a row that is not steered beside one that is
        ids = sampling.render_prompts(own, PROMPTS, 4)
        rows = [(beside.vector, beside.locus, "generated"), None, None]
        batches = sampling.in_batches(
            own, ids, [0] * 3, lambda b: row_hooks([rows[i] for i in b]), sampling.Sampling(max_new_tokens=4), False
        )
        with pytest.raises(StarError, match=message):
            list(batches)


def test_on_a_gpu_the_kernel_under_a_mask_is_chosen_and_heads_are_expanded(monkeypatch) -> None:
    chosen: list[Any] = []
    shapes: list[tuple[int, ...]] = []

    @contextmanager
    def kernels(backends):
        chosen.append(set(backends))
        yield

    class OnCuda(Tensor):
        @property
        def device(self):  # type: ignore[override]
            return torch.device("cuda")

    def attention_of(q, k, v, attn_mask, enable_gqa):
        shapes.append((q.shape[1], k.shape[1], v.shape[1], enable_gqa))
        plain = (t.as_subclass(Tensor) for t in (q, k, v))
        return sdpa(*plain, attn_mask=attn_mask)

    noise = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 8, generator=noise) for heads in (4, 2, 2))
    seen = torch.ones(2, 1, 5, 5).tril().bool()
    scores = torch.einsum("rhqd,rhkd->rhqk", q, k.repeat_interleave(2, 1)) / 8**0.5
    expected = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(attend_masked(q, k, v, seen), expected)
    sdpa = attention.F.scaled_dot_product_attention
    monkeypatch.setattr(attention, "sdpa_kernel", kernels)
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", attention_of)
    found = attend_masked(*(t.as_subclass(OnCuda) for t in (q, k, v)), seen)
    torch.testing.assert_close(found.as_subclass(Tensor), expected)
    assert shapes == [(4, 4, 4, False)]
    (allowed,) = chosen
    assert allowed.isdisjoint({SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION})


FAULTS: dict[str, Any] = {
    "NaN": lambda g: g * torch.nan,
    "half": lambda g: 0.5 * g,
    "a wrong row": lambda g: g.roll(1, 1),
}


@pytest.mark.parametrize("which", ["query", "key", "value"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_gradient_of_attention_that_cannot_be_one_is_refused(tiny, monkeypatch, fault, which: str) -> None:
    monkeypatch.setattr(backward, "TRUSTED_DEVICES", ())
    right = star.attribute(tiny, unequal_pairs(), progress=False)
    for half in ("float64", "bfloat16"):
        star.attribute(star.load_model("demo", dtype=half), unequal_pairs(), progress=False)
    plain = attention.F.scaled_dot_product_attention

    def spoiled(q, k, v, attn_mask, enable_gqa):
        tensors = {"query": q, "key": k, "value": v}
        if tensors[which].requires_grad:
            tensors[which] = tensors[which].view_as(tensors[which])
            tensors[which].register_hook(fault)
        return plain(*tensors.values(), attn_mask=attn_mask, enable_gqa=enable_gqa)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", spoiled)
    with pytest.raises(StarError, match=r"^Attention's gradient is not one on this device [^\n]+mode='layer_by_layer'"):
        star.attribute(tiny, unequal_pairs(), progress=False)
    slow = star.attribute(tiny, unequal_pairs(), mode="layer_by_layer", progress=False)
    torch.testing.assert_close(slow.scores, right.scores, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"mode": "two_passes"}, {"method": "ig"}, {"method": "relp"}])
def test_attribution_under_inference_mode_is_what_it_is_elsewhere(write_llama, options) -> None:
    model = star.load_model(write_llama())
    with torch.inference_mode():
        star.sample(model, PROMPTS, max_new_tokens=3, progress=False)
        inside = star.attribute(model, unequal_pairs(), progress=False, **options)
    outside = star.attribute(model, unequal_pairs(), progress=False, **options)
    torch.testing.assert_close(inside.scores, outside.scores, rtol=0, atol=0)
    assert not inside.scores.is_inference()


def test_a_model_of_inference_mode_is_refused_for_gradients_and_samples(write_llama) -> None:
    folder = write_llama()
    with torch.inference_mode():
        model = star.load_model(folder)
    assert star.sample(model, PROMPTS, max_new_tokens=3, progress=False) == star.sample(
        star.load_model(folder), PROMPTS, max_new_tokens=3, progress=False
    )
    with pytest.raises(StarError, match=r"^The model was loaded[^\n]+torch\.inference_mode\(\)[^\n]+load it again"):
        star.attribute(model, unequal_pairs(), progress=False)


def test_a_stream_begun_in_inference_mode_goes_on_outside(tiny) -> None:
    whole = star.generate(tiny, PROMPTS, max_new_tokens=5, progress=False)
    with torch.inference_mode():
        running = star.stream(tiny, PROMPTS, max_new_tokens=5)
        next(running)
    assert [r.text for r in list(running)[-1]] == [r.text for r in whole]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rms_norms_gradient_is_the_same_by_formula_and_by_a_kernel(monkeypatch, dtype: torch.dtype) -> None:
    chance = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 5, 8, generator=chance, dtype=dtype), torch.rand(8, generator=chance, dtype=dtype)
    gradient = torch.randn(2, 3, 5, 8, generator=chance, dtype=dtype)
    found = backward._through_norm(gradient, x, weight, 1e-5)
    monkeypatch.setattr(backward, "FUSED_NORM", ("cpu",))
    torch.testing.assert_close(backward._through_norm(gradient, x, weight, 1e-5), found)


def test_drift_is_the_same_from_copies_at_once_a_few_at_a_time_and_through_autograd(tiny, monkeypatch) -> None:
    rows = pair_batch(tiny, prepare(tiny, unequal_pairs()))
    signs = partial(rows.signs, draws=5, seed=3)
    found = drift_gradients(tiny, rows, signs)
    whole = found.abs().amax()
    with monkeypatch.context() as small:
        small.setattr(backward, "AT_ONCE", 1)
        small.setattr(drift, "ROOM_BYTES", 1)
        assert (drift_gradients(tiny, rows, signs) - found).abs().amax() < 1e-5 * whole
    monkeypatch.setattr(drift, "llama_forward", lambda model: None)
    assert (drift_gradients(tiny, rows, signs) - found).abs().amax() < 1e-4 * whole


def test_the_signs_of_a_pair_are_even_and_the_same_in_every_batch(tiny) -> None:
    pairs = unequal_pairs()
    prepared = prepare(tiny, pairs)
    rows, alone = (pair_batch(tiny, some) for some in (prepared, prepared[1:2]))
    tokens, words = rows.signs(4001, 40, 2)
    own_tokens, own_words = alone.signs(4001, 40, 2)
    assert words.shape == (40, rows.size, 4001)
    assert words.abs().eq(1).all()
    assert torch.equal(words[:, 1:2], own_words)
    assert words.mean().abs() < 4 / words.numel() ** 0.5
    width = own_tokens.shape[2]
    assert torch.equal(tokens[:, 1 :: rows.size, :width], own_tokens)
    assert not tokens[:, ~rows.reply_mask].any()
    assert torch.equal(tokens[:, rows.reply_mask][:, 1:].abs().unique(), torch.tensor([0.0, 1.0, 2**0.5]))


def test_the_passes_by_formulas_use_the_forward_that_was_made(own, monkeypatch) -> None:
    made = llama_forward(own)
    used: list[object] = []
    gradient = passes.LlamaGradient
    monkeypatch.setattr(passes, "LlamaGradient", lambda llama, *args: used.append(llama) or gradient(llama, *args))
    star.attribute(own, unequal_pairs(), progress=False)
    assert set(map(id, used)) == {id(made)}
