"""What was fixed at a promotion stays, and a look that a crash cut off is found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftloop.config import Gate
from draftloop.errors import StoreError
from draftloop.evaluation.drift import LoggedGeneration, StreamKey
from draftloop.evaluation.looks import Look
from draftloop.evaluation.promotion_watch import FOLDER, PromotionWatch
from draftloop.registry.registry import Pointer

SETTINGS = Gate()
POINTER = Pointer("v0002", "v0001", 2)


def stream(count: int, source: str = "chat") -> list[LoggedGeneration]:
    key = StreamKey("t", "d", source, "rejection", 0.8, 1.0, 0.0, 0)
    return [LoggedGeneration(f"{source} {i}", key, f"{source} {i}", None, 0.5, "heldout") for i in range(count)]


@pytest.fixture
def watch(tmp_path: Path) -> PromotionWatch:
    return PromotionWatch(tmp_path / "adapters")


def test_units_and_place_are_fixed_once(watch: PromotionWatch) -> None:
    found = watch.begin(POINTER, stream(12) + stream(11, "mail"), SETTINGS)
    assert found is not None
    assert (found.champion, found.previous, found.sources, found.units) == ("v0002", "v0001", ("chat",), 2)
    assert found.mark[-1] == "mail 10"
    assert watch.begin(POINTER, stream(50, "mail"), SETTINGS) == found == PromotionWatch(watch.root).of(POINTER)
    assert watch.of(Pointer("v0002", "v0001", 3)) is None


def test_settings_that_change_later_change_no_watch_in_work(watch: PromotionWatch) -> None:
    """Or five more looks would be made at a level of their own."""
    begun = watch.begin(POINTER, stream(12), SETTINGS)
    later = Gate(looks=50, rollback_alpha=0.2, min_heldout_prompts=2)
    assert watch.begin(POINTER, stream(12), later) == begun
    assert begun is not None
    assert (begun.least, begun.looks, begun.alpha) == (12, 5, 0.025)


def test_training_prompts_make_no_unit(watch: PromotionWatch) -> None:
    key = StreamKey("t", "d", "chat", "rejection", 0.8, 1.0, 0.0, 0)
    trained = [LoggedGeneration(f"{i}", key, f"{i}", None, 0.5, "train") for i in range(40)]
    found = watch.begin(POINTER, trained, SETTINGS)
    assert found is not None
    assert (found.sources, len(found.mark)) == ((), 32)


def test_the_bare_draft_is_not_watched(watch: PromotionWatch) -> None:
    assert watch.begin(Pointer(None, "v0001", 2), stream(3), SETTINGS) is None
    assert not watch.root.exists()


def test_a_look_is_there_before_it_is_done_and_once(watch: PromotionWatch) -> None:
    begun = watch.begin(POINTER, stream(12), SETTINGS)
    assert begun is not None
    look = Look("look", "chat", 12, ("a", "b"), 0.01)
    with_look = watch.note_begun(begun, look)
    assert watch.of(POINTER) == with_look
    assert watch.note_begun(with_look, look).made == (look,)
    done = watch.note_done(with_look, look, 0.25)
    assert watch.of(POINTER) == done
    assert [(one.p_value, one.record_ids) for one in done.made] == [(0.25, ())]


def test_damage_is_told_with_what_to_do(watch: PromotionWatch) -> None:
    watch.begin(POINTER, stream(12), SETTINGS)
    path = watch.root / FOLDER / "2.json"
    path.write_bytes(path.read_bytes().replace(b"v0001", b"v0009"))
    with pytest.raises(StoreError, match=r"2.json is damaged: .*Delete it"):
        watch.of(POINTER)
