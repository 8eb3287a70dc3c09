"""What every hook point's vector is, from one reading of the pairs: for looking at many places in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from star_tl.data.chat import Prompt, render, template_hash
from star_tl.data.pairs import ContrastivePair, Pairs
from star_tl.errors import StarError
from star_tl.locus import POINTS, Locus, hook_name
from star_tl.models.backend import Model, tokenizer_of
from star_tl.models.batch import make_batch
from star_tl.models.memory import TOO_LONG, fitting_batches
from star_tl.vectors.activations import read
from star_tl.vectors.vector import SteeringVector


@dataclass(frozen=True)
class Survey:
    """Mean clean − corrupted activations of pairs at every hook point and the last prompt tokens.

    ``differences`` is by hook point ``[window ... d]``, with a head axis at ``attn.hook_z``, ``norms`` the mean norm of
    the corrupted activations there, ``[window ...]``.
    """

    differences: dict[str, Tensor]
    norms: dict[str, Tensor]
    trait: str
    n_pairs: int
    model: str
    fingerprint: str
    template: str

    def holds(self, locus: Locus) -> bool:
        """Whether the locus lies in what was read."""
        return locus.hook_point in self.norms and -min(locus.positions) <= len(self.norms[locus.hook_point])

    def vector(self, locus: Locus) -> SteeringVector:
        """The located vector there, as :func:`star_tl.extract_vector` makes it.

        Raises:
            StarError: a place that was not read.
        """
        if not self.holds(locus):
            raise StarError(f"{locus} was not surveyed: extract the vector there.")
        rows, norms = self.differences[locus.hook_point], self.norms[locus.hook_point]
        at = [len(norms) + p for p in locus.positions]
        rows, norms = rows[at], norms[at]
        if locus.head is not None:
            rows, norms = rows[:, locus.head], norms[:, locus.head]
        own = {name: getattr(self, name) for name in ("trait", "n_pairs", "model", "fingerprint", "template")}
        return SteeringVector(rows.float(), locus, method="located", residual_norm=float(norms.mean()), **own)


def survey(
    model: Model,
    pairs: Pairs,
    window: int,
    batch_size: int = 16,
    progress: Callable[[float], None] | None = None,
) -> Survey:
    """Read the extraction split of ``pairs`` once and keep every hook point's means.

    Args:
        model: the model that the vectors will steer.
        pairs: contrastive pairs.
        window: prompt tokens, counted from the end, that are kept; every prompt has as many.
        batch_size: pairs in a forward pass.
        progress: told the share that is done.

    Raises:
        StarError: a prompt that is shorter than the window, or memory is too small for a single pair.
    """
    from star_tl.models.load import fingerprint

    pairs = pairs.extraction
    names = [hook_name(p, layer) for p in POINTS for layer in range(model.cfg.n_layers)]
    names = [name for name in names if name in model.hook_dict]
    sums: dict[str, Tensor] = {}
    norms: dict[str, Tensor] = {}
    done = 0

    def work(chunk: Sequence[ContrastivePair]) -> int:
        found = [
            _at_the_end(model, [prompt(p) for p in chunk], names, window)
            for prompt in (pairs.clean_prompt, pairs.corrupted_prompt)
        ]
        for name in names:
            clean, corrupted = (run[name] for run in found)
            sums[name] = sums.get(name, 0.0) + (clean - corrupted).sum(0)
            norms[name] = norms.get(name, 0.0) + corrupted.norm(dim=-1).sum(0)
        return len(chunk)

    for _, n in fitting_batches(pairs.pairs, lambda left: batch_size, work, lambda pair: TOO_LONG, "pairs"):
        done += n
        if progress is not None:
            progress(done / len(pairs))
    return Survey(
        {name: total / len(pairs) for name, total in sums.items()},
        {name: total / len(pairs) for name, total in norms.items()},
        pairs.trait.name,
        len(pairs),
        str(model.cfg.model_name),
        fingerprint(model),
        template_hash(tokenizer_of(model)),
    )


def _at_the_end(model: Model, prompts: Sequence[Prompt], names: Sequence[str], window: int) -> dict[str, Tensor]:
    rendered = [render(tokenizer_of(model), p).ids for p in prompts]
    if min(map(len, rendered)) < window:
        raise StarError(f"A prompt is shorter than the {window} tokens that are looked at: use a smaller window.")
    batch = make_batch(model, rendered)
    columns = slice(batch.prompt_end - window, batch.prompt_end)
    return dict(zip(names, read(model, batch, names, [columns] * len(names)), strict=True))
