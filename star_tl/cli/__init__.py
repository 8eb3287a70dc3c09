"""The command line: ``star-tl run`` walks the whole road, the others one step each."""

from __future__ import annotations

import typer

from star_tl.cli.deploy import doctor, export, serve
from star_tl.cli.one_line import OneLineErrors
from star_tl.cli.options import ListsMethods
from star_tl.cli.steps import attribute, extract, generate, sweep
from star_tl.cli.whole import evaluate, run

app = typer.Typer(
    cls=OneLineErrors,
    help="Find where a language model carries a social trait, and turn it up while it writes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command(cls=ListsMethods)(attribute)
app.command(cls=ListsMethods)(extract)
app.command()(generate)
app.command()(sweep)
app.command()(evaluate)
app.command(cls=ListsMethods)(export)
app.command()(serve)
app.command()(doctor)
