"""The independent truth: HuggingFace's own Llama, with vectors added by plain PyTorch hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from star_tl.locus import Locus
from star_tl.vectors import SteeringVector

END_OF_TURN = 3


def load(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def prompt_ids(tokenizer, *messages: str, system: str | None = None) -> list[int]:
    """Messages of user and assistant in turn, through the tokenizer's own chat template."""
    chat = [{"role": ("user", "assistant")[i % 2], "content": m} for i, m in enumerate(messages)]
    if system:
        chat.insert(0, {"role": "system", "content": system})
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)


@contextmanager
def adding(hf: LlamaForCausalLM, locus: Locus, rows: Mapping[int, Tensor]) -> Iterator[None]:
    """Add ``rows[i]`` to token i (from the first token) of uncached passes."""
    block, d_head = hf.model.layers[locus.layer], hf.config.hidden_size // hf.config.num_attention_heads

    def plus(hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        for position, row in rows.items():
            if locus.head is None:
                hidden[:, position] += row
            else:
                hidden[:, position, locus.head * d_head : (locus.head + 1) * d_head] += row
        return hidden

    def before(module, args):
        return (plus(args[0]), *args[1:])

    def after(module, args, output):
        return (plus(output[0]), *output[1:]) if isinstance(output, tuple) else plus(output)

    kind = locus.hook_point.split(".", 2)[2]
    handle = {
        "hook_resid_pre": lambda: block.register_forward_pre_hook(before),
        "hook_resid_mid": lambda: block.self_attn.register_forward_hook(after),  # the same sum
        "hook_resid_post": lambda: block.register_forward_hook(after),
        "hook_attn_out": lambda: block.self_attn.register_forward_hook(after),
        "hook_mlp_out": lambda: block.mlp.register_forward_hook(after),
        "attn.hook_z": lambda: block.self_attn.o_proj.register_forward_pre_hook(before),
    }[kind]()
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def logits(hf: LlamaForCausalLM, ids: list[int], locus: Locus | None = None, rows: Mapping[int, Tensor] | None = None):
    """Logits [position, vocab] of one unpadded sequence in one pass."""
    if locus is None:
        return hf(torch.tensor([ids])).logits[0]
    with adding(hf, locus, rows or {}):
        return hf(torch.tensor([ids])).logits[0]


def greedy(
    hf: LlamaForCausalLM, prompt: list[int], steps: int, locus: Locus, rows: Callable[[int, int], Mapping[int, Tensor]]
) -> tuple[int, ...]:
    """Greedy reply without a cache; ``rows(prompt, total)`` is what to add to so many tokens."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(logits(hf, ids, locus, rows(len(prompt), len(ids)))[-1].argmax()))
        if ids[-1] == END_OF_TURN:
            return tuple(ids[len(prompt) : -1])
    return tuple(ids[len(prompt) :])


def steering_vector(
    hook_point: str = "blocks.1.hook_resid_post",
    positions: tuple[int, ...] = (-1,),
    head: int | None = None,
    width: int = 32,
    scale: float = 0.5,
    seed: int = 0,
) -> SteeringVector:
    """A random vector with another row for every position."""
    noise = torch.randn(len(positions), 8 if head is not None else width, generator=torch.Generator().manual_seed(seed))
    return of(noise * scale, Locus(hook_point, positions, head))


def of(vector: Tensor, locus: Locus) -> SteeringVector:
    return SteeringVector(vector, locus, "trait", "by hand", 1.0, 1, "tiny", "", "")


def forcing(model) -> tuple[int, SteeringVector]:
    """A token and a vector at the last layer's end that makes it the most probable one, whatever the context."""
    read = (model.ln_final.w[:, None] * model.unembed.W_U).detach()
    token = int(read.norm(dim=0).argmax())  # no other has a larger product with the longest one
    return token, of(1e3 * read[None, :, token], Locus(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"))


def hooks_left(model) -> int:
    return sum(len(point.fwd_hooks) + len(point._forward_hooks) for point in model.hook_dict.values())


class OnHuggingFace:
    """HuggingFace's own Llama or OLMo-2, hooks of PyTorch on its modules under TransformerLens's names."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        self.hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False).eval()
        own = self.hf.config
        self.cfg = SimpleNamespace(n_layers=own.num_hidden_layers, n_heads=own.num_attention_heads)
        self.tokenizer, self.d_head = tokenizer, own.hidden_size // own.num_attention_heads

    def run_with_hooks(self, tokens: Tensor, fwd_hooks: Any) -> Tensor:
        handles = [self._attach(name, function) for name, function in fwd_hooks]
        try:
            return self.hf(tokens).logits
        finally:
            for handle in handles:
                handle.remove()

    def _attach(self, name: str, function: Callable[..., Any]) -> Any:
        inner = self.hf.model
        hook = SimpleNamespace(name=name)

        def after(module: Any, inputs: Any, output: Any) -> Any:
            if not isinstance(output, tuple):
                return function(output, hook=hook)
            changed = function(output[0], hook=hook)
            return None if changed is None else (changed, *output[1:])

        def before(module: Any, inputs: tuple[Tensor, ...]) -> Tensor | None:
            return function(inputs[0], hook=hook)

        def heads(module: Any, inputs: tuple[Tensor, ...]) -> Tensor:
            z = inputs[0].unflatten(-1, (-1, self.d_head))
            changed = function(z, hook=hook)
            return (z if changed is None else changed).flatten(-2)

        if name == "hook_embed":
            return inner.embed_tokens.register_forward_hook(after)
        block, kind = inner.layers[int(name.split(".")[1])], name.split(".", 2)[2]
        if hasattr(block, "post_feedforward_layernorm"):  # OLMo-2 normalises what attention and MLP write
            attention, mlp, middle = block.post_attention_layernorm, block.post_feedforward_layernorm, block.mlp
        else:
            attention, mlp, middle = block.self_attn, block.mlp, block.post_attention_layernorm
        return {
            "hook_resid_pre": lambda: block.register_forward_pre_hook(before),
            "hook_resid_mid": lambda: middle.register_forward_pre_hook(before),
            "hook_resid_post": lambda: block.register_forward_hook(after),
            "hook_attn_out": lambda: attention.register_forward_hook(after),
            "hook_mlp_out": lambda: mlp.register_forward_hook(after),
            "attn.hook_z": lambda: block.self_attn.o_proj.register_forward_pre_hook(heads),
        }[kind]()

    def greedy(self, ids: list[int], hooks: Any, steps: int) -> list[int]:
        """The likeliest continuation without a cache; whole rows have no need of a count."""
        _, (name, function) = hooks
        written = list(ids)
        for _ in range(steps):
            written.append(int(self.run_with_hooks(torch.tensor([written]), [(name, function)])[0, -1].argmax()))
        return written[len(ids) :]
