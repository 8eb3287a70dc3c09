"""A folder as save_pretrained writes it, with a sentencepiece-like tokenizer and no chat template, walks the road."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

import star_tl as star
from star_tl.cli import app
from star_tl.data.chat import render
from star_tl.data.pairs import TRAITS

SPECIAL = ("<unk>", "<s>", "</s>")


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 2's way with text: words begin with ▁, ``<s>`` is added by the tokenizer, nothing pads."""
    unigram = request.param == "unigram"
    tokenizer = Tokenizer(models.Unigram() if unigram else models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    options = {"vocab_size": 500, "special_tokens": list(SPECIAL), "show_progress": False}
    trainer = trainers.UnigramTrainer(unk_token="<unk>", **options) if unigram else trainers.BpeTrainer(**options)
    texts = [text for t in TRAITS for p in star.load_pairs(t) for text in (p.positive, p.negative)]
    tokenizer.train_from_iterator([*texts, "User: Assistant:\n"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
    )
    path = tmp_path_factory.mktemp("local")
    LlamaForCausalLM(config).save_pretrained(path)
    fast.save_pretrained(path)
    return path


def test_prompts_begin_with_bos_once_and_hold_the_plain_text(folder: Path) -> None:
    with pytest.warns(UserWarning, match="no chat template"):
        model = star.load_model(folder)
    rendered = render(model.tokenizer, "I am sorry.")
    assert rendered.ids.count(1) == 1
    assert rendered.ids[0] == 1
    assert "User: I am sorry." in model.tokenizer.decode(rendered.ids)


@pytest.mark.filterwarnings("ignore:This tokenizer has no chat template")
def test_the_whole_road_is_walked(folder: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("I lost my job today and I am scared.\nMy exam went badly.\n")
    model = star.load_model(folder)
    # A random model is moved by the vectors of some traits only.
    moves = (t for t in TRAITS if float(star.attribute(model, star.load_pairs(t)).choose_layer().gain.max()) > 0)
    arguments = ["run", "--model", str(folder), "--prompts", str(prompts), "--out", str(out)]
    arguments += ["--trait", next(moves), "--strength", "1", "--seeds", "1", "--max-new-tokens", "8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert len(pd.read_csv(out / "scores.csv")) > 3
    assert (out / "report.html").stat().st_size > 1e5
