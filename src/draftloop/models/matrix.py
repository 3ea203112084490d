"""What is known of every text model of mlx-lm: whether and how it works. `make models` writes it. Knows no MLX."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KnownModel(_Row):
    """One module of mlx-lm, or a variant of it.

    Attributes:
        name: the module's: the `model_type` of a `config.json`, for most.
        works: whether a tiny one decodes exactly with a draft.
        why_not: where it does not.
        caches: kinds of what its cache is made of.
        rewinds: how these take tokens back: `trim`, `local` or `eager`.
        batches: `together` or `one by one`: how outputs of unequal prompts are generated.
        trains: `all layers`, `all but` some, or why none.
        head: `short` where training computes logits at supervised positions alone, else `every position`.
        exports: what mlx-lm loads from the files of an export: `adapter`, `fused` or both.
        tried: `quick`, or `full` with every draft length, several seeds, and ways back that are broken on purpose.
    """

    name: str
    works: bool
    why_not: str | None
    caches: tuple[str, ...]
    rewinds: str | None
    batches: str | None
    trains: str | None
    head: str | None
    exports: str | None
    tried: Literal["quick", "full"]


class Matrix(_Row):
    """All of them, the versions of MLX and mlx-lm that they were tried with, and how thoroughly that was."""

    versions: dict[str, str]
    cares: dict[str, dict[str, object]]
    models: Annotated[tuple[KnownModel, ...], Field(min_length=1)]


@cache
def known_models() -> Matrix:
    """As `make models` found them."""
    return Matrix.model_validate_json((files("draftloop.models") / "matrix.json").read_bytes())
