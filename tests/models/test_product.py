"""Products beside float64 and autograd, in processes whose CPU is told to do less too."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import star_tl as star
from star_tl.models import product as module
from star_tl.models.product import product

WAYS = ("float32", "bfloat16", "bfloat16 by pieces", "float16 by pieces")
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def asked(monkeypatch: pytest.MonkeyPatch, way: str) -> torch.dtype:
    if way.endswith("pieces"):
        monkeypatch.setattr(module, "by_pieces", lambda dtype: dtype.itemsize == 2)
        monkeypatch.setattr(module, "PIECE", 1000)  # several pieces, the last one shorter
    return getattr(torch, way.split()[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", [(1,), (2,), (3, 5)])
def test_a_product_is_that_of_float64(monkeypatch, way: str, turned: bool, shape: tuple[int, ...]) -> None:
    dtype = asked(monkeypatch, way)
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, 48, generator=chance).to(dtype)
    weight = (torch.randn(48, 75, generator=chance).T if turned else torch.randn(75, 48, generator=chance)).to(dtype)
    bias = torch.randn(75, generator=chance).to(dtype)
    for added in (None, bias):
        exact = x.double() @ weight.double().T + (0 if added is None else added.double())
        with torch.no_grad():
            found = product(x, weight, added)
        assert found.dtype == dtype
        assert float((found.double() - exact).abs().max() / exact.abs().max()) < CLOSE[dtype]


def test_a_gradient_goes_back_through_a_product() -> None:
    x, weight = torch.randn(4, 6, requires_grad=True), torch.randn(5, 6)
    product(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(4, -1))


WORK = """
import sys, warnings, torch, star_tl as star
from star_tl.doctor import _arithmetic
from star_tl.models import product
print(product.one_dnn(), product.by_pieces(torch.bfloat16), _arithmetic("cpu"))
model = star.load_model(sys.argv[1], dtype="bfloat16")
held = {p.dtype for p in model.parameters()}
with warnings.catch_warnings():
    warnings.filterwarnings("error", message=".*bfloat16 instructions")  # as of the model's own forward
    pairs = star.load_pairs("agreement")
    few = type(pairs)(pairs.trait, pairs.extraction.pairs[:2])
    attr = star.attribute(model, few, progress=False)
    star.sample(model, ["Hello there."] * 2, max_new_tokens=4, progress=False)
    star.sample(model, ["Hello there."], max_new_tokens=4, progress=False)
print(held, [float(x) for x in attr.scores.nansum((0, 1, 3))])
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(2):
        star.sample(model, ["Hello there."], hooks=[("ln_final.hook_scale", lambda x, hook: x)], max_new_tokens=1,
                    progress=False)
print(len([w for w in said if "bfloat16 instructions" in str(w.message)]))
"""


def test_a_cpu_without_bfloat16_is_seen_and_computes_in_float32(tiny_folder: Path) -> None:
    """Imitated: the libraries are told that there is AVX2 and no more."""
    command = [sys.executable, "-c", WORK, str(tiny_folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | OLDER)
    assert done.returncode == 0, done.stderr[-2000:]
    way, found, said = done.stdout.splitlines()[-3:]
    assert way.startswith("False True")
    assert "float32 by pieces" in way
    assert found.startswith("{torch.bfloat16}")
    assert said == "1"
    exact = star.load_model(tiny_folder)
    pairs = star.load_pairs("agreement")
    attr = star.attribute(exact, type(pairs)(pairs.trait, pairs.extraction.pairs[:2]), progress=False)
    theirs = torch.tensor([float(x) for x in found.split("[")[1].rstrip("]").split(",")])
    ours = attr.scores.nansum((0, 1, 3))
    assert float(torch.nn.functional.cosine_similarity(theirs, ours, dim=0)) > 0.9


def test_nothing_is_said_where_the_cpu_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "by_pieces", lambda dtype: False)
    module.say_slow.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.say_slow(torch.bfloat16)
    module.say_slow.cache_clear()
