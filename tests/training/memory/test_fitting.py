"""How a micro-batch is cut, and how what a pass takes is estimated."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise

import orjson
import pytest
from tiny import sampler

from draftloop.training.dataset.examples import Example
from draftloop.training.loop import Progress
from draftloop.training.memory.fitting import Cost, Curve, Fit, measure_cost


def example(length: int, labels: int = 8, name: str = "r") -> Example:
    """With so many inputs."""
    return Example(f"{name}{length}", "s", (1,) * (length + 1), length + 1 - labels, sampler())


def lengths(parts: list[tuple[Example, ...]]) -> list[list[int]]:
    return [[len(one.inputs) for one in part] for part in parts]


MIXED = [example(length) for length in (20, 30, 40, 60, 90, 200)]


def test_without_a_bound_nothing_is_cut():
    assert Fit().parts(MIXED) == ([tuple(MIXED)], ())


def test_parts_are_as_large_as_fits_in_the_order_of_the_examples():
    parts, alone = Fit(room=128.0, most=128.0).parts(MIXED)  # padded tokens: 32, 32, 48, 64, 96, 208
    assert lengths(parts) == [[20, 30], [40, 60], [90]]
    assert lengths([alone]) == [[200]]


def test_of_a_text_that_does_not_fit_alone_as_much_of_the_output_is_kept_as_fits():
    long = example(200, labels=150)  # a prompt of 51 tokens
    (cut,), alone = Fit(room=128.0, most=128.0).parts([long])
    assert alone == ()
    assert cut == (long.shortened(78),)  # 128 inputs
    assert Fit(room=64.0, most=64.0).fitted(long) == long.shortened(14)
    assert Fit(room=63.0, most=63.0).fitted(long) is None


def test_every_example_is_in_one_part_in_full_or_cut_or_left_out():
    texts = [*MIXED, example(100, labels=70), example(300, labels=299)]
    for room in (32.0, 64.0, 100.0, 300.0, 2000.0):
        fit = Fit(room=room, most=room)
        parts, alone = fit.parts(texts)
        kept = {one.record_id: one for part in parts for one in part}
        assert [one.record_id for one in texts if one.record_id in kept or one in alone] == [e.record_id for e in texts]
        for one in texts:
            if one not in alone:
                n = len(kept[one.record_id].labels)
                assert kept[one.record_id] == one.shortened(n)
                assert n == len(one.labels) or not fit.takes([one.shortened(n + 1)])
        assert all(Cost().of(part) <= room for part in parts)


def test_a_fit_says_how_many_texts_it_cuts():
    assert Fit().describe([MIXED]) == "activations are kept"
    assert Fit(room=256.0, most=256.0).describe([MIXED]).endswith("worked on in parts")
    assert Fit(room=128.0, most=128.0).describe([MIXED, MIXED]).endswith("the ends of 1 of 6 outputs are left out")


def test_pieces_leave_nothing_out():
    assert lengths(Fit(room=128.0, most=128.0).pieces(MIXED))[-1] == [200]


def test_first_activations_are_computed_again_and_then_parts_are_halved():
    first = Fit().fallback([MIXED])
    assert first == Fit(recompute=True)
    second = first.fallback([MIXED])  # 6 rows of 208 tokens
    assert second.room == 3 * 208
    third = second.fallback([MIXED])
    assert len(third.parts(MIXED)[0]) > len(second.parts(MIXED)[0]) > 1


def test_halving_ends_at_single_examples_and_leaves_none_out_however_large_the_constant_is():
    fit = Fit(Cost(Curve(fixed=1e9), Curve(fixed=1e9)), recompute=True)
    for _ in range(10):
        if not fit.is_smallest([MIXED]):
            fit = fit.fallback([MIXED])
    parts, alone = fit.parts(MIXED)
    assert lengths(parts) == [[20], [30], [40], [60], [90], [200]]
    assert alone == ()


def test_where_one_example_was_too_much_only_it_and_larger_ones_are_left_out():
    found = Fit(recompute=True).fallback([[MIXED[-1]], [MIXED[0]]])
    assert found.parts([MIXED[-1]]) == ([], (MIXED[-1],))
    assert found.takes([MIXED[-2]])


def test_each_step_down_of_texts_alone_leaves_less_than_was_tried_until_nothing_is_left():
    texts = [[example(900, labels=600)], [example(500, labels=480)]]
    fit, sizes = Fit(recompute=True), []
    while (fit := fit.fallback(texts, cut=True)) is not None:
        sizes.append(max((fit.cost.of(part) for batch in texts for part in fit.parts(batch)[0]), default=0.0))
    assert sizes[0] < Cost().of(texts[0])
    assert all(later < before for before, later in pairwise(sizes))
    assert sizes[-1] == 0


def test_what_was_cut_smaller_is_kept_unless_there_is_less_room_now():
    cut = Fit(room=100.0, most=250.0, recompute=True)
    assert cut.is_within(Fit(room=300.0, most=300.0), [MIXED])
    assert not cut.is_within(Fit(room=150.0, most=150.0), [MIXED])


def test_the_smallest_has_one_example_a_part_and_keeps_nothing():
    assert not Fit().is_smallest([[MIXED[0]]])
    assert Fit(recompute=True).is_smallest([[MIXED[0]], [MIXED[1]]])
    assert not Fit(recompute=True).is_smallest([MIXED])
    assert Fit(room=32.0, most=32.0, recompute=True).is_smallest([MIXED])


@pytest.mark.parametrize("fit", [Fit(), Fit(Cost(Curve(0.1, 2.0), Curve(3.0, 4.0), 64, 1 / 3), 1e9 / 7, 1e9 / 3, True)])
def test_a_fit_survives_its_checkpoint(fit):
    assert Progress.from_json(orjson.loads(orjson.dumps(asdict(Progress(fit=fit))))).fit == fit
    assert Progress.from_json(asdict(Progress())).fit is None


def probe(length: int, labels: int, piece: int) -> int:
    """A draft of which everything is known: what is cut keeps twice the body."""
    cut = max(64, labels) > piece
    body = (2 if cut else 1) * (100 * length + 3 * length**2)
    return 5000 + body + 70 * min(max(64, labels), piece)


def test_a_measured_cost_is_the_one_of_the_draft():
    cost = measure_cost(probe, longest=300, most_labels=4096, room=1e12, piece=1024, per_label=0)
    for length, labels in ((32, 8), (200, 128), (1000, 512), (1000, 1000)):
        rows = [example(length, labels)]
        padded = [-(-length // 16) * 16, -(-labels // 64) * 64]
        assert cost.of(rows) == pytest.approx(probe(padded[0], padded[1], 1024), rel=1e-6)
    assert cost.of([example(320, 300)] * 8) == pytest.approx(
        5000 + 2 * 8 * (100 * 320 + 3 * 320**2) + 70 * 1024, rel=1e-6
    )


def test_what_the_teacher_does_not_keep_is_counted_by_the_label():
    cost = measure_cost(probe, 100, 64, 1e12, 1024, per_label=1000)
    assert cost.of([example(100, 64)]) == pytest.approx(probe(112, 64, 1024) + 64_000, rel=1e-6)


def test_no_length_is_tried_that_would_not_fit_by_those_before():
    tried: list[int] = []

    def watched(length: int, labels: int, piece: int) -> int:
        tried.append(length)
        return probe(length, labels, piece)

    cost = measure_cost(watched, 10_000, 64, room=2 * probe(128, 64, 1024), piece=64, per_label=0)
    assert max(tried) == 128
    assert cost.of([example(10_000, 64)]) > 2 * probe(128, 64, 1024)


def test_what_was_refused_is_gone_without():
    cost = measure_cost(
        lambda length, labels, piece: probe(length, labels, piece) if length < 100 else None, 500, 64, 1e12, 64, 0
    )
    assert 0.5 < cost.of([example(64, 64)]) / probe(64, 64, 64) < 1.5
    nothing = measure_cost(lambda *_: None, 500, 64, 1e12, 64, 0)
    assert nothing.of([example(32)]) > 1e18
    assert Progress.from_json(orjson.loads(orjson.dumps(asdict(Progress(fit=Fit(nothing)))))).fit == Fit(nothing)


def test_what_trembles_gives_no_negative_estimate():
    noise = iter([900, 1000, 1010, 1005, 1000, 995, 1000, 990])
    cost = measure_cost(lambda *_: next(noise), 100, 64, 1e12, 64, 0)
    assert cost.of([example(5000, 64)]) >= 1000
