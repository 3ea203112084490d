"""A server trains while nobody asks, with the target in the child or without, and answers with what was promoted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from server import Server, until
from shop import Shop

from draftloop.models.pair import bytes_of, load_pair
from draftloop.runtime.memory import GIGABYTE
from draftloop.serving.child_plan import DRAFTS, WORK


def settings_of(shop: Shop) -> dict[str, Any]:
    """What differs from the defaults, as variables."""
    sections = shop.config.model_dump(exclude_defaults=True, exclude={"models"})
    found: dict[str, Any] = {}
    for section, values in sections.items():
        for key, value in values.items():
            inner = value if isinstance(value, dict) else {"": value}
            found |= {f"{section}.{key}{'.' if name else ''}{name}": one for name, one in inner.items()}
    return found


@pytest.mark.parametrize("has_target", [pytest.param(True, marks=pytest.mark.slow), False])
def test_it_trains_by_itself_and_puts_the_champion_into_use(
    with_teacher: Shop, tmp_path: Path, has_target: bool
) -> None:
    shop = with_teacher.copy(tmp_path / "data")
    pair = load_pair(shop.config.models)
    target, draft = bytes_of(pair.target), bytes_of(pair.draft)
    least = WORK + DRAFTS * draft + (target if has_target else 0)
    limit = {"retrain.max_memory_gb": (least + target / 2) / GIGABYTE}  # with half of the target more
    models = ("--model", shop.config.models.target, "--draft-model", shop.config.models.draft)
    learning = ("--learn", "idle", "--idle-minutes", "0")
    shown = set()
    with Server(shop.data.root, *models, *learning, settings={**settings_of(shop), **limit}) as server:

        def is_promoted() -> bool:
            shown.add((shop.data.presence.look() or {}).get("how"))
            return bool(server.metric('champion_info{version="v0001"}'))

        until(is_promoted, 300)
        assert server.stop() == 0
    line = shop.data.audit.entries()[0]
    assert (line["outcome"], line["steps"]) == ("promoted", ["train", "gate"])
    assert line["numbers"]["live"]["agrees"]
    assert bool(line["numbers"]["acceptance_per_position"]) == has_target
    how = "with the target loaded once more" if has_target else "without the target"
    assert any(how in str(one) for one in shown)
    assert any("learning: trained v0001" in said for said in server.said)
