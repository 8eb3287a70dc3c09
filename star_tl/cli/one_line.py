"""Whatever goes wrong is one line on stderr and an exit code, and a warning is a line too."""

from __future__ import annotations

import errno
import functools
import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from star_tl.errors import StarError


class OneLineErrors(TyperGroup):
    """Options that cannot be read are refused in one line too."""

    def main(self, *args: Any, standalone_mode: bool = True, **more: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):  # a terminal that cannot write a letter shows a mark in its place
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **more)
        try:
            code = super().main(*args, standalone_mode=False, **more)
        except TyperException as error:
            if message := error.format_message():  # empty where the help was asked for by no argument at all
                typer.echo(f"star-tl: {message}", err=True)
            sys.exit(2)
        except typer.Abort:
            sys.exit(130)
        sys.exit(code if isinstance(code, int) else 0)


def _warn(message: Warning | str, *where: object) -> None:
    """A warning is for the user, to whom the line of code that gave it says nothing."""
    typer.echo(f"star-tl: {message}", err=True)


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Bad input and a full disk end with one line on stderr and exit code 2; Ctrl-C with 130. Warnings are a line."""

    @functools.wraps(command)
    def wrapped(*args: object, **kwargs: object) -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _warn
                command(*args, **kwargs)
        except StarError as error:
            typer.echo(f"star-tl: {error}", err=True)
            raise typer.Exit(2) from None
        except BrokenPipeError:  # who read along has gone; what was to be written to files is written
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "see to it"
            typer.echo(
                f"star-tl: {place}{error.strerror or error}: {remedy} and call again; what was finished is on disk.",
                err=True,
            )
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("star-tl: stopped; what was finished is on disk.", err=True)
            raise typer.Exit(130) from None

    return wrapped
