"""Write the model card of an export, its README.md: contents, use, measurements. Knows no model and no prompt.

Names come from configurations and manifests, so whatever they hold must stay a name: in YAML, in Markdown, in a shell.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .verify import Measured

_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_NOT_HERE = (".", "/", "~", "embedded:")
_EMBEDDED = {"embedded:target": "reference.TARGET", "embedded:draft": "reference.DRAFT"}
_RULES = {
    "greedy": "temperature 0, here and in mlx-lm",
    "match": "what mlx-lm does above temperature 0",
    "rejection": "what draftloop does above temperature 0",
    "block": "the same, where whole prefixes are accepted or rejected",
}


@dataclass(frozen=True)
class Card:
    """The contents of a card.

    Attributes:
        name: of the directory.
        target, draft: as configured: a Hugging Face id, a directory, or an embedded model.
        layers: how many of that draft's first layers this one has; None is all.
        fused: a whole draft; else an adapter alone.
        version, parent: of the adapter; no parent: the bare draft.
        created: unix seconds.
        records: how many generations it learned from.
        weights: what they are stored as.
        fingerprints: of target, draft, tokenizer and, for a whole draft, this model.
        num_draft_tokens: K, for the commands.
        versions: of the software.
        measured: acceptance on held-out generations; None where there was none.
        not_measured: why.
        names: what the drafts of `measured` are, in words.
        below: sentences about where the export is accepted less than the bare draft.
    """

    name: str
    target: str
    draft: str
    layers: int | None
    fused: bool
    version: str
    parent: str | None
    created: float
    records: int
    weights: str
    fingerprints: Mapping[str, str]
    num_draft_tokens: int
    versions: Mapping[str, str]
    measured: Measured | None
    not_measured: str | None
    names: Mapping[str, str]
    below: Sequence[str] = ()


def write_card(card: Card) -> str:
    """The card as Markdown with a YAML head, as mlx-lm's cards have it: `card.md.jinja`, filled in."""
    from huggingface_hub import ModelCard, ModelCardData

    head = ModelCardData(
        library_name="mlx",
        pipeline_tag="text-generation",
        base_model=card.draft if _is_hub_id(card.draft) else None,
        tags=["mlx", "draftloop", "speculative-decoding", *([] if card.fused else ["lora"])],
    )
    samplers = card.measured.conditions["samplers"] if card.measured else []
    made = ModelCard.from_template(
        head,
        template_str=_TEMPLATE.read_text("utf-8"),
        card=card,
        here=shlex.quote(f"./{card.name}"),
        created=time.strftime("%Y-%m-%d", time.gmtime(card.created)),
        embedded={card.target, card.draft} & _EMBEDDED.keys(),
        rules=_RULES,
        samplers="; ".join(", ".join(f"{key} {value:g}" for key, value in one.items()) for one in samplers),
        argument=_argument,
        cell=_cell,
        code=_code,
        fenced=_fenced,
        interval=_interval,
        python=_python,
        repr=repr,
        shown=_shown,
    )
    return f"{made}\n"


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith(_NOT_HERE) and not Path(name).exists()


def _shown(name: str) -> str:
    """A directory by its last name alone: where somebody keeps models is nobody else's business."""
    return name if name in _EMBEDDED or _is_hub_id(name) else Path(name).name


def _argument(name: str) -> str:
    """A model in a shell command."""
    if name in _EMBEDDED:
        return f'"$(python -c "from draftloop import reference; print({_EMBEDDED[name]})")"'
    return shlex.quote(name if _is_hub_id(name) else f"path/to/{_shown(name)}")


def _python(name: str) -> str:
    """A model in Python."""
    if name in _EMBEDDED:
        return f"str({_EMBEDDED[name]})"
    return repr(name if _is_hub_id(name) else f"path/to/{_shown(name)}")


def _code(text: str) -> str:
    """Inline code of one line that nothing in `text` can end; U+FFFD for what no page shows."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split())) or "?"
    fence = "`" * (_longest_run(plain) + 1)
    space = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{space}{plain}{space}{fence}"


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _cell(value: object) -> str:
    return str(value).replace("|", r"\|").replace("\n", " ")


def _interval(low: float | None, high: float | None, number: str) -> str:
    """`n/a` where one prompt alone gives none."""
    return "n/a" if low is None or high is None else f"[{number % low}, {number % high}]"
