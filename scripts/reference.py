"""Write notebooks/reference.md: every public name with its signature, what it does, and an example that the tests run.

python scripts/reference.py
"""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

import star_tl as star

PAGE = Path(__file__).parents[1] / "notebooks" / "reference.md"
INTRO = """# Reference

Every public name of `star_tl`, in the order in which one needs them. The examples are one session on the demo model;
the tests run them from top to bottom. The docstrings (`help(star.attribute)`) hold all arguments, units and errors.
"""
# Name → lines of a doctest; later examples use what earlier ones made.
EXAMPLES: dict[str, str] = {
    "load_model": '>>> import star_tl as star\n>>> model = star.load_model("demo")\n>>> model.cfg.n_layers\n8',
    "load_pairs": '>>> pairs = star.load_pairs("emotional_support")\n>>> pairs\n'
    "Pairs('emotional_support', 64 pairs, 24 held out)",
    "Trait": '>>> hope = star.Trait("hope", "Be hopeful.", "Be gloomy.", ("hope(?:ful)?",))\n'
    '>>> hope.shown_in("I hope so.")\nTrue',
    "ContrastivePair": '>>> rows = [("It rains.", "I hope it stops.", "It will not.")]\n'
    ">>> (pair,) = star.load_pairs(rows, hope)\n>>> isinstance(pair, star.ContrastivePair), pair.positive\n"
    "(True, 'I hope it stops.')",
    "Pairs": ">>> few = star.Pairs(pairs.trait, pairs.pairs[:8])\n>>> len(few), len(few.prompts)\n(8, 8)",
    "attribute": ">>> attr = star.attribute(model, few, progress=False)\n"
    ">>> attr.choose_layer().layer in range(8)\nTrue",
    "AttributionMap": '>>> table = attr.to_frame()\n>>> {"layer", "resid_post", "gain"} <= set(table.columns)\nTrue',
    "Locus": ">>> locus = attr.top_locus()\n>>> isinstance(locus, star.Locus)\nTrue\n"
    '>>> print(star.Locus("blocks.5.hook_resid_post", (-2, -1)))\nblocks.5.hook_resid_post @ -2, -1',
    "exact_effects": '>>> place = star.Locus("blocks.5.hook_resid_post")\n'
    ">>> exact = star.exact_effects(model, few, [place], progress=False)\n>>> tuple(exact.shape)\n(8, 1)",
    "verify": ">>> checked = star.verify(model, few, attr, top_k=4, sample=4, progress=False)\n"
    ">>> len(checked.loci) >= 8\nTrue",
    "extract_vector": '>>> vector = star.extract_vector(model, pairs, star.Locus("blocks.5.hook_resid_post"))\n'
    ">>> vector.trait, vector.n_pairs\n('emotional_support', 40)",
    "SteeringVector": ">>> hooks = vector.hooks(strength=2.0)\n>>> hooks[-1][0]\n'blocks.5.hook_resid_post'\n"
    ">>> forward_hook = vector.to_hf_hook(2.0)  # for a layer of the HuggingFace model",
    "combine": '>>> polite = star.extract_vector(model, star.load_pairs("politeness"), vector.locus)\n'
    ">>> both = star.combine([vector, polite], [1.0, 0.5])\n>>> both.method\n'combined'",
    "project_off": ">>> only = star.project_off(vector, polite)\n"
    ">>> abs(float((only.vector * polite.vector).sum())) < 1e-3\nTrue",
    "sample": '>>> texts = star.sample(model, ["I failed my exam."], hooks, max_new_tokens=8, progress=False)\n'
    ">>> len(texts), isinstance(texts[0], str)\n(1, True)",
    "generate": '>>> (reply,) = star.generate(model, ["I failed my exam."], hooks, max_new_tokens=8, progress=False)\n'
    ">>> reply.text == texts[0]\nTrue",
    "stream": '>>> *_, (last,) = star.stream(model, ["I failed my exam."], hooks, max_new_tokens=8)\n'
    ">>> last.text == texts[0]\nTrue",
    "Sampling": ">>> greedy = star.Sampling(max_new_tokens=8, temperature=0)\n"
    '>>> len(star.sample(model, ["Hello."], sampling=greedy, progress=False))\n1',
    "Condition": '>>> warm = star.Condition("warm", vector, strength=2.0, seed=1)\n>>> warm.dose\n2.0',
    "converse": '>>> chat = star.converse(model, ["I failed.", "What now?"], warm, max_new_tokens=8)\n'
    ">>> chat.turn.tolist()\n[1, 2]",
    "score": '>>> scores = star.score(model, pairs.trait, ["I failed my exam."], [reply], warm)\n'
    '>>> {"shows", "drift"} <= set(scores.columns)\nTrue',
    "choose_strength": ">>> choice = star.choose_strength(\n"
    "...     model, vector, pairs.trait, few.prompts, (1.0, 2.0), sampling=greedy, progress=False)\n"
    ">>> choice.strength in (1.0, 2.0)\nTrue",
    "compare": ">>> found = star.compare(\n"
    "...     model, pairs, few.prompts[:2], [vector.locus], (1.0, 2.0), sampling=greedy, progress=False)\n"
    ">>> len(found.summary())\n3",
    "Comparison": '>>> isinstance(found, star.Comparison), "trait_rate" in found.summary()\n(True, True)',
    "run": ">>> tiny = few.prompts[:2]\n"
    ">>> result = star.run(model, few, tiny, strength=2.0, sampling=greedy, progress=False)\n"
    '>>> "steered" in set(result.summary.arm)\nTrue',
    "load_prompts": ">>> from pathlib import Path; from tempfile import mkdtemp\n"
    '>>> file = Path(mkdtemp()) / "prompts.txt"\n>>> _ = file.write_text("I failed.\\nHello.\\n")\n'
    ">>> len(star.load_prompts(file))\n2",
    "attribute_outcome": ">>> def longer(prompt, reply):\n...     return float(len(reply))\n"
    ">>> callable(longer)  # star.attribute_outcome(model, few.prompts, longer): where replies grow longer\nTrue",
    "OutcomeMap": ">>> star.OutcomeMap.__dataclass_params__.frozen  # what attribute_outcome returns\nTrue",
    "extract_outcome_vector": ">>> callable(star.extract_outcome_vector)  # a steering vector from such a map\nTrue",
    "choose_intervention": ">>> callable(star.choose_intervention)  # takes minutes: place and strength\nTrue",
    "InterventionChoice": ">>> star.InterventionChoice.__dataclass_params__.frozen  # what it returns\nTrue",
    "evaluate": '>>> callable(star.evaluate)  # star.evaluate(model, "emotional_support", out="runs/trial")\nTrue',
    "judges_of": '>>> callable(star.judges_of)  # embedding, ngrams = star.judges_of("emotional_support")\nTrue',
    "relevance": '>>> callable(star.relevance)  # star.relevance(["I failed my exam."], texts)\nTrue',
    "LLMJudge": '>>> star.LLMJudge(pairs.trait, "http://localhost:8000/v1", "judge").parallel\n8',
    "from_steering_vectors": ">>> callable(star.from_steering_vectors)  # a vector that steering-vectors saved\nTrue",
    "explore": '>>> callable(star.explore)  # star.explore(model, "emotional_support") in a notebook cell\nTrue',
    "copy_free_layout": ">>> callable(star.copy_free_layout)  # for models that star_tl did not load\nTrue",
    "StarError": '>>> try:\n...     star.load_pairs("emotional_suport")\n... except star.StarError as error:\n'
    '...     print("emotional_support" in str(error))\nTrue',
}


def reference() -> str:
    """The page. Raises KeyError where a public name has no example."""
    missing = set(star.__all__) ^ set(EXAMPLES)
    if missing:
        raise KeyError(f"examples and public names differ: {sorted(missing)}")
    parts = [INTRO]
    for name, example in EXAMPLES.items():
        thing = getattr(star, name)
        signature = "" if inspect.isclass(thing) else _signature(thing)
        parts.append(f"## `{name}`\n\n{signature}{_summary(thing)}\n\n```python\n{example}\n\n```\n")
    return "\n".join(parts)


def _signature(thing: object) -> str:
    names = [
        f"{'*' * (p.kind is p.VAR_POSITIONAL) + '**' * (p.kind is p.VAR_KEYWORD)}{p.name}"
        for p in inspect.signature(thing).parameters.values()  # pyright: ignore[reportArgumentType]
    ]
    return f"`star.{thing.__name__}({', '.join(names)})`\n\n"  # pyright: ignore[reportAttributeAccessIssue]


def _summary(thing: object) -> str:
    first = (inspect.getdoc(thing) or "").split("\n\n")[0]
    plain = first.replace("``", "`").replace(":func:", "").replace(":class:", "").replace(":data:", "").replace("~", "")
    return textwrap.fill(plain, 118)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"Wrote {PAGE.name}.")
