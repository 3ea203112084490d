"""A card says what was measured under which conditions, and no name that it holds can end or change what it says."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from draftloop.evaluation.benchmark import AcceptanceRow
from draftloop.export.model_card import Card, write_card
from draftloop.export.verify import ExportDifference, Measured

ROW = AcceptanceRow("v0003", "match", 4, 0.31234, 0.25, 1.75678, 1.5, 2.0)
CHANGE = ExportDifference("match", 4, -0.125, -0.25, None, 0.01234, 0.0, 0.02, of="exported", against="v0003")
CONDITIONS: dict[str, Any] = {
    "rules": ["match"],
    "num_draft_tokens": 4,
    "samplers": [{"temperature": 0.8, "top_p": 1.0, "min_p": 0.0, "top_k": 0}],
    "texts": 1200,
    "prompt_groups": 13,
    "prompts_sha256": "f" * 64,
    "tokens": 62400,
    "interval": "95% cluster bootstrap over prompt groups",
    "seed": 7,
    "device": "Device(cpu, 0)",
}
CARD = Card(
    name="better-draft",
    target="mlx-community/Qwen2.5-7B-Instruct-4bit",
    draft="mlx-community/Qwen2.5-0.5B-Instruct-4bit",
    layers=None,
    fused=True,
    version="v0003",
    parent="v0002",
    created=1_700_000_000.0,
    records=1234,
    weights="4 bits in groups of 64",
    fingerprints={"target": "a" * 64, "this model": "e" * 64},
    num_draft_tokens=4,
    versions={"draftloop": "0.1.0", "mlx": "0.32.4"},
    measured=Measured([ROW], [CHANGE], CONDITIONS),
    not_measured=None,
    names={"none": "bare draft", "v0003": "draft + adapter", "exported": "this export, from its files"},
)
ODD = [
    "a/`script`",
    "a/``script```",
    "`script",
    "script`",
    "x\n```\nscript $(rm -rf ~)\n```\n",
    "a\n---\nlicense: mit",
    "a/b: {c} # 'd'\"e\"",
    "| x | <script>alert(1)</script>",
    "{{ target }} {% raw %}",
    "-rf",
    "a/\ud800b\x1b[31m\u202ec",
    "é/漢",
]


def head(card: str) -> dict[str, Any]:
    _, text, _ = card.split("---\n", 2)
    return dict(yaml.safe_load(text))


def shell_lines(card: str) -> list[str]:
    """What stands in the fenced shell blocks, each block in one piece."""
    return [found[2] for found in re.finditer(r"^(`{3,})sh\n(.*?)\n\1$", card, re.S | re.M)]


def test_the_head_is_that_of_mlx_lms_own_cards() -> None:
    assert head(write_card(CARD)) == {
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
        "base_model": "mlx-community/Qwen2.5-0.5B-Instruct-4bit",
        "tags": ["mlx", "draftloop", "speculative-decoding"],
    }
    assert head(write_card(replace(CARD, fused=False)))["tags"][-1] == "lora"


@pytest.mark.parametrize("draft", ["embedded:draft", "./models/draft", "/models/x/draft", "draft", "~/a"])
def test_a_model_that_is_no_repository_is_no_base_model_for_the_hub(draft: str) -> None:
    assert "base_model" not in head(write_card(replace(CARD, draft=draft)))


def test_a_draft_of_the_target_s_own_layers_says_of_how_many() -> None:
    said = write_card(replace(CARD, layers=4))
    assert "the first 4 layers of `mlx-community/Qwen2.5-0.5B-Instruct-4bit`" in said
    assert "the first" not in write_card(CARD)


def test_a_whole_draft_is_used_by_its_own_name() -> None:
    (commands,) = shell_lines(write_card(CARD))
    pair = "--model mlx-community/Qwen2.5-7B-Instruct-4bit --draft-model ./better-draft --num-draft-tokens 4"
    assert commands.splitlines() == [f'mlx_lm.generate {pair} --prompt "Hello"', f"mlx_lm.server {pair}"]


def test_an_adapter_is_used_from_python_or_fused_first() -> None:
    card = write_card(replace(CARD, fused=False))
    assert "draft, _ = load('mlx-community/Qwen2.5-0.5B-Instruct-4bit', adapter_path='./better-draft')" in card
    draft = "mlx-community/Qwen2.5-0.5B-Instruct-4bit"
    assert shell_lines(card) == [f"mlx_lm.fuse --model {draft} --adapter-path ./better-draft --save-path fused-draft"]


def test_every_number_stands_beside_its_conditions() -> None:
    card = write_card(CARD)
    assert "| draft + adapter | match | 4 | 0.3123 | 0.2500 | 1.7568 | [1.5000, 2.0000] |" in card
    change = "this export, from its files minus draft + adapter"
    assert f"| {change} | match | 4 | -0.1250 | n/a | +0.0123 | [+0.0000, +0.0200] |" in card
    for condition in (
        "- rule match: what mlx-lm does above temperature 0",
        "- K (draft tokens of a round): 4",
        "- sampler: temperature 0.8, top_p 1, min_p 0, top_k 0",
        "- 1,200 generations of 13 prompts, 62,400 tokens, prompt set ffffffffffff\n",
        "- interval: 95% cluster bootstrap over prompt groups, seed 7",
        "- device: Device(cpu, 0)",
        "- adapter: `v0003` of 2023-11-14, from `v0002`",
        "- learned from 1,234 generations of the target",
        "- weights: 4 bits in groups of 64",
        "- fingerprints: target aaaaaaaaaaaa, this model eeeeeeeeeeee",
        "- made with draftloop 0.1.0, mlx 0.32.4",
        "That of the base model, `mlx-community/Qwen2.5-0.5B-Instruct-4bit`.",
    ):
        assert condition in card


def test_without_a_measurement_it_says_so_plainly() -> None:
    card = write_card(replace(CARD, measured=None, not_measured="no held-out generation", parent=None))
    assert "\n## Acceptance\n\nNot measured: no held-out generation.\n" in card
    assert "| --- |" not in card
    assert "from the bare draft\n" in card


def test_where_somebody_keeps_models_is_not_told() -> None:
    where = {"target": "/secret/ann/models/big", "draft": "~/private/small"}
    for fused in (True, False):
        card = write_card(replace(CARD, **where, fused=fused))
        assert "secret" not in card
        assert "private" not in card
        assert "path/to/big" in card


def test_the_embedded_pair_is_found_where_the_code_is() -> None:
    embedded = replace(CARD, target="embedded:target", draft="embedded:draft")
    (commands,) = shell_lines(write_card(embedded))
    assert '--model "$(python -c "from draftloop import reference; print(reference.TARGET)")"' in commands
    code = write_card(replace(embedded, fused=False))
    assert "from draftloop import reference\n" in code
    assert "load(str(reference.DRAFT), adapter_path='./better-draft')" in code


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("fused", [True, False])
def test_an_odd_name_stays_a_name(odd: str, fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    card = replace(CARD, name=odd.replace("/", "_"), target=odd, draft=odd, version=odd, parent=odd, fused=fused)
    written = write_card(replace(card, names=dict.fromkeys(["v0003", "exported"], "x")))
    text = written.encode("utf-8", "replace").decode()
    assert head(text)["library_name"] == "mlx"
    assert head(text).get("base_model", odd) in (odd, odd.encode("utf-8", "replace").decode())
    assert "license" not in head(text)
    tokens = MarkdownIt("commonmark").enable("table").parse(text.split("---\n", 2)[2])
    inline = [child for token in tokens for child in token.children or []]
    assert not {token.type for token in [*tokens, *inline]} & {"html_block", "html_inline", "link_open", "image"}
    prose = " ".join(child.content for child in inline if child.type == "text")
    for hostile in ("script", "rm -rf", "license", "target }}", "\x1b", "\u202e", "漢"):
        assert hostile not in prose
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1", "h2", "h2", "h2", "h2"]
    assert len([token for token in tokens if token.type == "fence"]) == (1 if fused else 2)
    for block in shell_lines(written):
        words = shlex.split(block)
        assert f"./{card.name}" in words
        assert words[0] in ("mlx_lm.generate", "mlx_lm.fuse")
        assert not {"rm", "-rf"} & set(words)
