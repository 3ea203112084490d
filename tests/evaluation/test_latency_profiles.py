"""What decoding costs is remembered by pair and machine, and what cannot be read is as if it were not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftloop.decoding.draft_length import Experience, LatencyProfile
from draftloop.evaluation.latency_profiles import Advice, LatencyProfiles, StoredProfile, pair_key

ONE = StoredProfile(
    LatencyProfile(0.001, (0.01, 0.011, 0.012)), Advice(2, "block", 1.4), {"block": Experience((9.0, 5.5), (6.0, 0.5))}
)
OTHER = StoredProfile(LatencyProfile(0.002, (0.02, 0.021)))


def test_what_was_kept_is_there_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    assert LatencyProfiles(path).of("a") is None
    assert LatencyProfiles(path).keep("a", ONE)
    LatencyProfiles(path).keep("b", OTHER)
    assert (LatencyProfiles(path).of("a"), LatencyProfiles(path).of("b"), LatencyProfiles(path).of("c")) == (
        ONE,
        OTHER,
        None,
    )
    LatencyProfiles(path).keep("a", OTHER)
    assert LatencyProfiles(path).of("a") == OTHER


def test_what_was_measured_of_a_pair_last_is_found_by_its_models(tmp_path: Path) -> None:
    costs = LatencyProfiles(tmp_path / "costs.json")
    sampled, greedy = (pair_key("a" * 64, "b" * 64, greedy=greedy) for greedy in (False, True))
    assert costs.of_pair("a" * 64, "b" * 64) is None
    costs.keep(f"{greedy}0", OTHER)
    assert costs.of_pair("a" * 64, "b" * 64) == OTHER
    costs.keep(f"{sampled}1", ONE)
    costs.keep(f"{sampled}2", OTHER)
    costs.keep(f"{sampled}1", ONE)  # once more, so it is the latest
    assert costs.of_pair("a" * 64, "b" * 64) == ONE
    assert costs.of_pair("a" * 64, "c" * 64) is None


def test_a_cache_makes_no_data_directory(tmp_path: Path) -> None:
    costs = LatencyProfiles(tmp_path / "new" / "costs.json")
    assert not costs.keep("a", ONE)
    assert costs.of("a") is None
    assert list(tmp_path.iterdir()) == []


COSTS = '"costs": {"t_draft": 1, "t_target": [1, 1]}'


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", '{"a": {"costs": {"t_draft": "fast"}}}', '{"a": 1}'),
        *(
            f'{{"a": {{{COSTS}, "experience": {{"block": {{"judged": {judged}, "kept": {kept}}}}}}}}}'
            for judged, kept in [("[1]", "[2]"), ("[-4]", "[-5]"), ("[1]", "[]"), ("[NaN]", "[NaN]"), ("[1e9]", "[1]")]
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_measured_over(text: str, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text)
    assert LatencyProfiles(path).of("a") is None
    LatencyProfiles(path).keep("a", ONE)
    assert LatencyProfiles(path).of("a") == ONE
