"""The README.md of an export: what it is, how to use it, what was measured. Knows no model, and no text of anybody's.

Names come from configurations and manifests, so whatever they hold must stay a name: in YAML, in Markdown, in a shell.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from .verify import Measured

_NOT_HERE = (".", "/", "~", "embedded:")
_EMBEDDED = {"embedded:target": "reference.TARGET", "embedded:draft": "reference.DRAFT"}
_RULES = {
    "greedy": "temperature 0, here and in mlx-lm",
    "match": "what mlx-lm does above temperature 0",
    "rejection": "what draftloop does above temperature 0",
    "block": "the same, where whole prefixes are kept or refused",
}


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        name: of the directory.
        target, draft: as configured: a Hugging Face id, a directory, or an embedded model.
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
    """The card as Markdown with a YAML head, as mlx-lm's cards have it."""
    parts = [_head(card), _title(card), _use(card), _numbers(card), _origin(card), _licence(card)]
    return "\n\n".join(parts) + "\n"


def _head(card: Card) -> str:
    fields: dict[str, Any] = {"library_name": "mlx", "pipeline_tag": "text-generation"}
    if _is_hub_id(card.draft):
        fields["base_model"] = card.draft
    fields["tags"] = ["mlx", "draftloop", "speculative-decoding", *([] if card.fused else ["lora"])]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _title(card: Card) -> str:
    draft, target = _code(_shown(card.draft)), _code(_shown(card.target))
    what = (
        f"A draft model for speculative decoding: {draft} with an adapter of draftloop in its weights."
        if card.fused
        else f"A LoRA adapter of the draft model {draft} for speculative decoding, in mlx-lm's format."
    )
    return (
        f"# {_code(card.name)}\n\n{what} It was trained on what {target} says where it rejected the draft's tokens, "
        "and guesses for that target. The text that comes out is the target's own; a draft changes only how many of "
        "its passes it takes."
    )


def _use(card: Card) -> str:
    target, here = _argument(card.target), shlex.quote(f"./{card.name}")
    options = f"--num-draft-tokens {card.num_draft_tokens}"
    if card.fused:
        pair = f"--model {target} --draft-model {here} {options}"
        commands = f'mlx_lm.generate {pair} --prompt "Hello"\nmlx_lm.server {pair}'
        return f"## Use\n\nFrom the directory that this one lies in:\n\n{_fenced(commands, 'sh')}"
    python = (
        f"from mlx_lm import generate, load\n{_imports(card)}\n"
        f"target, tokenizer = load({_python(card.target)})\n"
        f"draft, _ = load({_python(card.draft)}, adapter_path={'./' + card.name!r})\n"
        f'print(generate(target, tokenizer, "Hello", draft_model=draft, num_draft_tokens={card.num_draft_tokens}))'
    )
    fuse = f"mlx_lm.fuse --model {_argument(card.draft)} --adapter-path {here} --save-path fused-draft"
    return (
        f"## Use\n\nFrom the directory that this one lies in:\n\n{_fenced(python, 'python')}\n\n"
        "mlx-lm's commands take an adapter for the target only. For `--draft-model` put it into the draft's weights "
        f"first (`draftloop adapters export --fuse` does it too, and measures the result):\n\n{_fenced(fuse, 'sh')}"
    )


def _numbers(card: Card) -> str:
    if card.measured is None:
        return f"## Acceptance\n\nNot measured: {card.not_measured}."
    found = card.measured
    rows = [
        [
            card.names[row.adapter],
            row.rule,
            row.num_draft_tokens,
            _number(row.acceptance_per_position),
            _number(row.acceptance_rate),
            _number(row.acceptance_length),
            _interval(row.ci_low, row.ci_high),
        ]
        for row in found.results
    ]
    changes = [
        [
            f"{card.names[change.of]} minus {card.names[change.against]}",
            change.rule,
            change.num_draft_tokens,
            _signed(change.delta_acceptance_length),
            _interval(change.ci_low, change.ci_high, _signed),
            _signed(change.delta_acceptance_per_position),
            _interval(change.position_ci_low, change.position_ci_high, _signed),
        ]
        for change in found.comparison
    ]
    below = "".join(f"**{line}**\n\n" for line in card.below)
    measures = ["accepted per position", "acceptance rate", "acceptance length", "95%"]
    gains = ["gained acceptance length", "95%", "gained accepted per position", "95%"]
    return (
        "## Acceptance\n\nEstimated on held-out generations of the target, which no training has read. Intervals are "
        "of the column before them; differences are paired.\n\n"
        f"{below}"
        f"{_table(['draft', 'rule', 'K', *measures], rows)}\n\n{_table(['difference', 'rule', 'K', *gains], changes)}"
        f"\n\n{_conditions(found.conditions)}"
    )


def _conditions(conditions: Mapping[str, Any]) -> str:
    samplers = "; ".join(", ".join(f"{key} {value:g}" for key, value in s.items()) for s in conditions["samplers"])
    texts = f"{conditions['texts']:,} generations of {conditions['prompt_groups']:,} prompts"
    lines = [
        *(f"rule {rule}: {_RULES[rule]}" for rule in conditions["rules"]),
        f"K (draft tokens a round): {conditions['num_draft_tokens']}",
        f"sampler: {samplers}",
        f"{texts}, {conditions['tokens']:,} tokens, prompt set {conditions['prompts_sha256'][:12]}",
        f"interval: {conditions['interval']}, seed {conditions['seed']}",
        f"device: {conditions['device']}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _origin(card: Card) -> str:
    made = time.strftime("%Y-%m-%d", time.gmtime(card.created))
    learned = f"learned from {card.records:,} generations of the target"
    lines = [
        f"draft: {_code(_shown(card.draft))}; target: {_code(_shown(card.target))}",
        f"adapter: {_code(card.version)} of {made}, from {_code(card.parent) if card.parent else 'the bare draft'}",
        f"{learned}, none of which is in these files; what weights remember of them is in the weights",
        f"weights: {card.weights}",
        f"fingerprints: {', '.join(f'{name} {value[:12]}' for name, value in card.fingerprints.items())}",
        f"made with {', '.join(f'{name} {value}' for name, value in card.versions.items())}",
    ]
    return "## Origin\n\n" + "\n".join(f"- {line}" for line in lines)


def _licence(card: Card) -> str:
    return f"## Licence\n\nThat of the base model, {_code(_shown(card.draft))}."


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


def _imports(card: Card) -> str:
    return "from draftloop import reference\n" if {card.target, card.draft} & _EMBEDDED.keys() else ""


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


def _table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", r"\|").replace("\n", " ")


def _number(value: float) -> str:
    return f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _interval(low: float | None, high: float | None, number: Any = _number) -> str:
    """`n/a` where one prompt alone gives none."""
    return "n/a" if low is None or high is None else f"[{number(low)}, {number(high)}]"
