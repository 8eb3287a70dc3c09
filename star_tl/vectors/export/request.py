"""What an exporter is given, and the record by which it is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from jaxtyping import Float
from torch import Tensor

from star_tl.errors import StarError
from star_tl.locus import Locus
from star_tl.steering.hooks import Injection, Positions, injection_hooks
from star_tl.steering.positions import Schedule


class UnheldPositions(StarError):
    """A format cannot say at which tokens the vector is added."""


class Exported(Protocol):
    """What an exporter asks of a vector; a :class:`star_tl.SteeringVector` is one."""

    @property
    def locus(self) -> Locus: ...
    @property
    def trait(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def n_pairs(self) -> int: ...
    @property
    def model(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def template(self) -> str: ...

    def scaled(self, strength: float) -> Float[Tensor, "position d"]:
        """What is added at this strength."""
        ...


@dataclass(frozen=True)
class Request:
    """What to export: a vector at a strength and positions.

    ``model`` names the model that formats which hold its weights are written from, and ``measured`` holds figures for
    the recipe card, by what they are called there.

    Raises:
        StarError: a strength that is no finite number, positions that are unknown or change from prompt to prompt, or a
            locus at which nothing can be added.
    """

    vector: Exported
    strength: float = 1.0
    positions: Positions = None
    model: str | Path | None = None
    measured: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self.injection

    @property
    def injection(self) -> Injection:
        _, (_, injection) = injection_hooks(self.vector.scaled(self.strength), self.vector.locus, self.positions)
        return cast("Injection", injection)

    @property
    def schedule(self) -> Schedule:
        return self.injection.schedule

    @property
    def rows(self) -> Float[Tensor, "row d"]:
        """What is added, in float32: a row per position, or one for all of them."""
        return self.injection.vectors[0].detach().float().cpu()

    @property
    def everywhere(self) -> bool:
        """Whether the same is added at every token, of prompt and reply."""
        when = self.schedule
        return when.low is None and when.high is None and when.weight is None

    def layer(self, consumer: str) -> int:
        """The layer after which the vector is added.

        What is added to what an MLP writes is added to the residual stream after its layer.

        Raises:
            StarError: it is added in the middle of a layer.
        """
        locus = self.vector.locus
        kind = locus.hook_point.split(".", 2)[2]
        if kind in ("hook_resid_post", "hook_mlp_out"):
            return locus.layer
        if kind == "hook_resid_pre":
            return locus.layer - 1
        raise StarError(
            f"{consumer} adds after a whole layer, not at {locus.hook_point}: extract the vector at "
            f"blocks.{locus.layer}.hook_resid_post."
        )

    def every_token(self, consumer: str) -> Float[Tensor, " d"]:
        """What is added at every token. Raises UnheldPositions where it is not added at every one."""
        if not self.everywhere:
            raise UnheldPositions(
                f"{consumer} adds at every token and cannot hold the positions {self.schedule.name}: give positions "
                "'all' if the vector is meant for every token, or have one of the same drift fitted: star-tl export "
                "without --no-measure."
            )
        return self.rows[0]

    def numbered(self, consumer: str) -> dict[int, Float[Tensor, " d"]]:
        """What is added at each position, counted from the prompt's end.

        Raises:
            UnheldPositions: they go on for as long as the text does.
        """
        when, rows = self.schedule, self.rows
        if when.low is None or when.high is None:
            raise UnheldPositions(
                f"{consumer} cannot hold the positions {when.name}: give 'locus', 'all', 'first N' or numbers."
            )
        length = when.high - when.low
        return {column + when.low: rows[row] * factor for column, row, factor in when.columns(-when.low, 0, length)}


@dataclass(frozen=True)
class Format:
    """A format to export to.

    ``key`` is what ``format`` takes, ``label`` whose it is, ``summary`` a few words on it, ``write`` the writer, and
    ``usage`` says in Markdown how what was written is used. ``folder`` says that it writes a folder, and ``beside`` is
    the suffix of a file that it writes beside its own.
    """

    key: str
    label: str
    summary: str
    write: Callable[[Request, Path], None]
    usage: Callable[[Request, Path], str]
    folder: bool = False
    beside: str = ""

    def beside_it(self, path: Path) -> list[Path]:
        """What is written beside a file, recipe cards included."""
        more = [path.with_suffix(self.beside)] if self.beside else []
        return [*more, *cards(path)]

    def __str__(self) -> str:
        return f"{self.key} ({self.label}: {self.summary})"


def cards(base: Path) -> tuple[Path, Path]:
    """The recipe card beside a file, as JSON and as Markdown."""
    data, text = (base.with_name(f"{base.name}.card.{kind}") for kind in ("json", "md"))
    return data, text
