"""Options that several commands take, each said once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand

Model = Annotated[str, typer.Option("--model", help="'demo', 'smollm2', a folder, a GGUF file, or a Hub name.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16; default by size.")]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, or cuda:0,cuda:1 to spread a Llama; default cuda.")
]
Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help="hooked (HookedTransformer; default before TransformerLens 4), or bridge, which knows more architectures.",
    ),
]
FirstLayers = Annotated[
    int | None, typer.Option("--first-n-layers", help="Leave out all later layers; default all are loaded.")
]
Trait = Annotated[str, typer.Option("--trait", help="Built-in trait, or a JSONL file of pairs.")]
Prompts = Annotated[
    Path | None, typer.Option("--prompts", help="Prompts: ESConv, CaSiNo, CraigslistBargain, JSONL or text.")
]
Mode = Annotated[
    str | None,
    typer.Option("--mode", help="How to read --prompts: single (first user message; default) or multi (with history)."),
]
Limit = Annotated[int | None, typer.Option("--limit", help="Most prompts to take from --prompts; default 64.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Strength = Annotated[float, typer.Option("--strength", help="1 is the natural difference.")]
Tokens = Annotated[int, typer.Option("--max-new-tokens", help="Most tokens of a reply.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 is greedy.")]
TopP = Annotated[float, typer.Option("--top-p", help="Sample from the likeliest tokens of this share.")]
Seeds = Annotated[int, typer.Option("--seeds", help="Replies per prompt and condition.")]
Positions = Annotated[
    str | None,
    typer.Option(
        "--positions",
        help="locus, prompt, last_prompt, generated, all, first N, every N, decay N, a span of the chat (system, "
        "user turn, header), or numbers: -2,-1.",
    ),
]
Ray = Annotated[
    str | None, typer.Option("--ray", help="Share the work out on a Ray cluster: local, auto, or where its head is.")
]
Workers = Annotated[
    int | None, typer.Option("--workers", help="With --ray, how many; default one to a GPU, or to a machine.")
]


class ListsMethods(TyperCommand):
    """A command whose help lists the records behind ``--method``, which are imported only when it is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        records: Mapping[str, object]
        if self.name == "attribute":
            from star_tl.attribution import ESTIMATORS as records
        elif self.name == "export":
            from star_tl.vectors.export import FORMATS as records
        else:
            from star_tl.vectors import METHODS as records
        (option,) = (p for p in self.params if p.name in ("method", "format"))
        cast("Any", option).help = "; ".join(map(str, records.values())) + "."
        super().format_help(ctx, formatter)
