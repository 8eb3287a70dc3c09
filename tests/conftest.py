"""Models for the tests: the embedded one, and tiny random Llamas written as HuggingFace folders."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import tqdm.auto
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import star_tl as star
from star_tl.models.lens import HAS_HOOKED_TRANSFORMER

# Not every built-in trait, so that another one changes no test's tokens.
TOKENIZED = ("emotional_support", "self_disclosure", "politeness", "gratitude", "agreement")
SPECIAL = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>")
TEMPLATE = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


# The files that take longest, in that order: begun first, or one process would wait for another at the end.
LONGEST = (
    "notebooks/test_notebooks.py",
    "test_pipeline.py",
    "models/test_demo_model.py",
    "evaluation/test_intervention.py",
    "test_trial.py",
    "view/test_explorer.py",
    "test_production.py",
    "test_fuzz.py",
    "serve/test_serve.py",
    "vectors/test_export.py",
    "models/test_gguf.py",
)

# A KeyboardInterrupt that a test raises may fall between the two locks that tqdm takes by default, one of which is then
# held for ever; a plain one is taken at once.
for _bar in (tqdm.tqdm, tqdm.auto.tqdm):
    _bar.set_lock(threading.RLock())


def _turn(item: pytest.Item) -> int:
    name = item.path.relative_to(Path(__file__).parent).as_posix()
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)
    if not HAS_HOOKED_TRANSFORMER:
        for item in items:
            if item.get_closest_marker("hooked"):
                item.add_marker(pytest.mark.skip(reason="TransformerLens 4 has no HookedTransformer"))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 600 tokens in the Llama-3 chat format, trained on the built-in pairs."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((p.positive for t in TOKENIZED for p in star.load_pairs(t)), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[3],
        pad_token=SPECIAL[4],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture(scope="session")
def write_llama(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """Write a random Llama with ``save_pretrained`` and return its folder; keywords go to its config."""

    def write(seed: int = 0, **config: object) -> Path:
        torch.manual_seed(seed)
        settings = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.15,
            "bos_token_id": 0,
            "eos_token_id": 3,
            "pad_token_id": 4,
        }
        model = LlamaForCausalLM(LlamaConfig(**(settings | config)))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or "bias" in name:  # initialised to ones and zeros, which hide mistakes
                    parameter.add_(0.2 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp("llama")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def tiny_folder(write_llama: Callable[..., Path]) -> Path:
    return write_llama()


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path):
    """A random model of three layers, in float32, of TransformerLens's line's own kind."""
    return star.load_model(str(tiny_folder))


@pytest.fixture(scope="session")
def demo():
    """The embedded demo model."""
    return star.load_model("demo")
