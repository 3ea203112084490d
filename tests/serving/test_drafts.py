"""The champion of the moment answers requests that begin; what is under way ends with the draft it began with."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest
from engine_client import Client, answer_of
from mlx.utils import tree_flatten
from mortal import HANGS
from shop import Shop, flip_a_bit
from tiny import sampler

from draftloop.config import Config, Models, Speculative
from draftloop.data_directory import DataDirectory
from draftloop.decoding.decoder import Decoding, Settings
from draftloop.decoding.draft_length import LatencyProfile
from draftloop.errors import AdapterError
from draftloop.evaluation.latency import machine_fingerprint
from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig
from draftloop.models.draft_vocabulary import DraftVocabulary
from draftloop.models.pair import Pair, load_pair, with_kept_choices, with_self_layers
from draftloop.models.self_layers import SelfLayers
from draftloop.registry.registry import Registry
from draftloop.serving.drafts import LOOK_EVERY, TRY_AGAIN, Drafts
from draftloop.serving.engine import TARGET, Capacity, Engine
from draftloop.serving.job import Job
from draftloop.serving.metrics import Metrics
from draftloop.serving.room import Room
from draftloop.serving.run import _keep_experience as keep_experience
from draftloop.serving.served import Served, reader_of

PROMPT = "def read_file(path):\n    "


def shop_at(root: Path) -> Shop:
    """A data directory of the embedded pair with two versions, neither in use."""
    found = Shop(DataDirectory(root), Config())
    found.add_version(0.05, seed=1)
    found.add_version(0.05, seed=2)
    return found


def served(pair: Pair) -> Served:
    return Served(pair, Speculative(), {}, "rejection")


def drafts_of(
    shop: Shop, reference: str = "champion", serve: Callable[[Pair], Served] = served
) -> tuple[Drafts, Metrics, list[str]]:
    metrics, said, models, names = Metrics(), list[str](), shop.config.models, shop.data.names
    load, renew = partial(load_pair, models, names=names), partial(with_kept_choices, models=models, names=names)
    return Drafts(shop.data.registry, reference, load, renew, serve, metrics, said.append), metrics, said


def test_the_pointer_is_followed_and_the_weights_are_shared(tmp_path: Path) -> None:
    shop = shop_at(tmp_path)
    drafts, metrics, said = drafts_of(shop)
    first = drafts.first()
    assert first.pair.adapter is None
    assert drafts.renewed(first, 0.0) is None
    shop.data.registry.promote("v0001")
    assert drafts.renewed(first, LOOK_EVERY / 2) is None  # it looks once a second
    second = drafts.renewed(first, LOOK_EVERY)
    assert second is not None
    assert second.pair.adapter == "v0001"
    assert second.pair.target is first.pair.target
    before, after = (dict(tree_flatten(one.pair.draft.parameters())) for one in (first, second))
    shared = {name for name in before if before[name] is after[name]}
    assert {name for name in before if "norm" in name} <= shared
    assert not mx.allclose(first.pair.draft(mx.array([[1, 2]])), second.pair.draft(mx.array([[1, 2]])))
    assert b'version="v0001"' in metrics.render()
    shop.data.registry.rollback()
    third = drafts.renewed(second, 2 * LOOK_EVERY)
    assert third is not None
    assert third.pair.adapter is None
    assert mx.array_equal(first.pair.draft(mx.array([[1, 2]])), third.pair.draft(mx.array([[1, 2]])))
    assert said == [
        "requests begin with v0001 from now on",
        "requests begin with the bare draft from now on",
    ]


def test_a_damaged_version_leaves_the_draft_in_use_and_the_next_one_is_taken(tmp_path: Path) -> None:
    shop = shop_at(tmp_path)
    drafts, metrics, said = drafts_of(shop)
    first = drafts.first()
    shop.data.registry.promote("v0001")
    flip_a_bit(shop, "v0001")
    assert drafts.renewed(first, 1.0) is None
    assert drafts.renewed(first, 9.0) is None  # it is not tried again and again
    assert len(said) == 1
    assert said[0].startswith("the bare draft stays in use: the champion is not whole")
    assert b"swaps_failed_total 1.0" in metrics.render()
    shop.data.registry.promote("v0002")
    found = drafts.renewed(first, 20.0)
    assert found is not None
    assert found.pair.adapter == "v0002"


def test_a_champion_that_could_not_be_used_is_tried_again_a_minute_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests may have had all the memory just then, and the pointer may not move again for days."""
    shop = shop_at(tmp_path)
    drafts, metrics, said = drafts_of(shop)
    first = drafts.first()
    shop.data.registry.promote("v0001")

    def refuse(*_arguments: object, **_named: object) -> None:
        raise RuntimeError("[malloc] Unable to allocate 100 bytes")

    with monkeypatch.context() as patched:
        patched.setattr(lora, "merge", refuse)
        assert drafts.renewed(first, 1.0) is None
        assert drafts.renewed(first, 2.0) is None
        assert drafts.renewed(first, 1.0 + TRY_AGAIN) is None
    assert len(said) == 1
    assert b"swaps_failed_total 1.0" in metrics.render()
    assert drafts.renewed(first, 3.0 + TRY_AGAIN) is None
    found = drafts.renewed(first, 2.0 + 2 * TRY_AGAIN)
    assert found is not None
    assert found.pair.adapter == "v0001"
    assert drafts.renewed(found, 4.0 + 9 * TRY_AGAIN) is None


def test_a_pointer_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    shop = shop_at(tmp_path)
    drafts, metrics, _ = drafts_of(shop)
    first = drafts.first()
    (shop.data.registry.root / "pointer.json").write_text("{")
    assert drafts.renewed(first, 1.0) is None
    assert b"swaps_failed_total 1.0" in metrics.render()


def test_what_is_wrong_for_long_is_said_once(tmp_path: Path) -> None:
    shop = shop_at(tmp_path)
    drafts, metrics, said = drafts_of(shop)
    first = drafts.first()
    pointer = shop.data.registry.root / "pointer.json"
    pointer.write_text("{")
    for seconds in (1.0, 3.0, 5.0):
        assert drafts.renewed(first, seconds) is None
    assert len(said) == 1
    assert b"swaps_failed_total 1.0" in metrics.render()
    pointer.unlink()
    assert drafts.renewed(first, 7.0) is None
    pointer.write_text("{")
    assert drafts.renewed(first, 9.0) is None
    assert len(said) == 2


def test_a_pointer_that_the_system_does_not_let_it_read_is_looked_at_again(tmp_path: Path) -> None:
    """Such as by a process that has no file left to open: clients may have taken them all."""
    shop = shop_at(tmp_path)
    drafts, _, said = drafts_of(shop)
    first = drafts.first()
    pointer = shop.data.registry.root / "pointer.json"
    pointer.mkdir()
    assert drafts.renewed(first, 1.0) is None
    assert "stays in use" in said[0]
    pointer.rmdir()
    shop.data.registry.promote("v0001")
    found = drafts.renewed(first, 3.0)
    assert found is not None
    assert found.pair.adapter == "v0001"


def test_a_pointer_that_moves_during_a_look_gives_no_draft_another_ones_name(tmp_path: Path) -> None:
    class MovesBetween(Registry):
        def resolve(self, reference: str) -> Path | None:
            self.promote("v0002")
            return super().resolve(reference)

    shop = shop_at(tmp_path)
    drafts, _, _ = drafts_of(shop)
    first = drafts.first()
    shop.data.registry.promote("v0001")
    drafts._registry = MovesBetween(shop.data.registry.root)
    found = drafts.renewed(first, 1.0)
    assert found is not None
    assert found.pair.adapter == "v0002"
    whole = load_pair(shop.config.models).with_adapter(shop.data.registry.root / "v0002")
    tokens = mx.array([[1, 2]])
    assert mx.allclose(found.pair.draft(tokens), whole.draft(tokens), atol=1e-4)
    assert drafts.renewed(found, 3.0) is None


@pytest.mark.parametrize("reference", ["none", "v0001", "latest"])
def test_an_adapter_that_was_named_stays(tmp_path: Path, reference: str) -> None:
    shop = shop_at(tmp_path)
    drafts, _, _ = drafts_of(shop, reference)
    first = drafts.first()
    assert first.pair.adapter == {"none": None, "v0001": "v0001", "latest": "v0002"}[reference]
    shop.data.registry.promote("v0002" if reference == "v0001" else "v0001")
    assert drafts.renewed(first, 100.0) is None


def test_a_damaged_champion_keeps_it_from_starting(tmp_path: Path) -> None:
    shop = shop_at(tmp_path)
    shop.data.registry.promote("v0001")
    flip_a_bit(shop, "v0001")
    with pytest.raises(AdapterError, match="not whole"):
        drafts_of(shop)[0].first()


def test_a_request_ends_with_the_draft_it_began_with(tmp_path: Path) -> None:
    shop = shop_at(tmp_path)
    drafts, metrics, _ = drafts_of(shop)
    ended: list[Job] = []
    renewals: list[Callable[[], None]] = []

    def renew(now: Served) -> Served | None:
        if not renewals:
            return None
        renewals.pop()()
        loaded.put(None)
        return drafts.renewed(now, 1e9)

    loaded: queue.Queue[None] = queue.Queue()
    engine = Engine(
        drafts.first,
        Capacity(4, 4, 1 << 26),
        ended.append,
        lambda: False,
        metrics,
        on_ready=lambda: loaded.put(None),
        renew=renew,
    )

    found: list[tuple[str, str]] = []

    def work() -> None:
        try:
            loaded.get(timeout=HANGS)
            assert engine.served is not None
            client = Client(engine, engine.served.pair, ended)
            events = client.ask(PROMPT, length=200)[1]
            events.get(timeout=HANGS)
            renewals.append(lambda: shop.data.registry.promote("v0001") and None)
            loaded.get(timeout=HANGS)
            others = client.ask(PROMPT, length=200)[1]
            answer_of(events)
            found.append((answer_of(others)[0], client.answer(PROMPT, length=200)[0]))
        finally:
            engine.stop(30)

    thread = threading.Thread(target=work)
    thread.start()
    engine.run()
    thread.join()
    assert [job.work.pair.adapter for job in ended] == [None, "v0001", "v0001"]
    ((one, other),) = found
    assert one == other
    outputs = {tuple(job.work.output) for job in ended}
    assert len(outputs) == 1  # they are greedy: the target's own, whatever drafts
    readers = {entry.shelf.reader for entry in engine.prefixes._entries.values()}
    assert readers == {TARGET, reader_of(ended[1].work.pair)}


def test_a_self_draft_of_other_layers_is_cut_anew_from_the_same_target(tmp_path: Path) -> None:
    """The child that trains settles the number of layers, while the server has the one of the start."""
    models = Models(target="embedded:target", draft="self")
    shop = Shop(DataDirectory(tmp_path), Config(models=models))
    drafts, _, said = drafts_of(shop)
    first = drafts.first()
    assert len(first.pair.draft.layers) == 1
    settled = SelfLayers(3, is_settled=True, why="it pays")
    names = shop.data.names
    names.self_layers.keep(first.pair.identity.target, settled)
    other = with_self_layers(first.pair, models, settled, names)
    lora.attach_fresh(other.draft, AdapterConfig(4, 1.0), seed=0)
    made = shop.data.registry.create(lambda path: lora.save_adapter(other.draft, path), {"pair": other.identity})
    shop.data.registry.promote(made.name)
    second = drafts.renewed(first, LOOK_EVERY)
    assert second is not None
    assert (second.pair.adapter, len(second.pair.draft.layers)) == ("v0001", 3)
    assert second.pair.target is first.pair.target
    assert len(first.pair.draft.layers) == 1  # requests under way end with it
    assert said == ["requests begin with v0001 from now on"]


def test_requests_keep_their_room_when_the_draft_is_another_one(tmp_path: Path) -> None:
    """What is left at a swap is less by the caches of requests under way, and of earlier ones, that the room is for."""
    left, models = iter([1e9, 1e3]), Models(target="embedded:target", draft="self")
    shop = Shop(DataDirectory(tmp_path), Config(models=models))
    drafts, _, _ = drafts_of(shop, serve=lambda pair: replace(served(pair), room=Room.of(pair, next(left), 2)))
    first, names = drafts.first(), shop.data.names
    settled = SelfLayers(3, is_settled=True, why="it pays")
    names.self_layers.keep(first.pair.identity.target, settled)
    other = with_self_layers(first.pair, models, settled, names)
    lora.attach_fresh(other.draft, AdapterConfig(4, 1.0), seed=0)
    shop.data.registry.create(lambda path: lora.save_adapter(other.draft, path), {"pair": other.identity})
    shop.data.registry.promote("v0001")
    second = drafts.renewed(first, LOOK_EVERY)
    assert second is not None
    assert first.room is not None
    assert second.room is not None
    assert second.room.left(0) == first.room.left(0) == 1e9
    assert second.room.bytes_of(10, 10) > first.room.bytes_of(10, 10)  # of more layers


def test_what_a_draft_may_propose_is_that_of_the_data_directory_from_the_next_swap_on(tmp_path: Path) -> None:
    """The child that trains chooses it before its gate compares, and asks the server for what steps take with it."""
    shop = shop_at(tmp_path)
    drafts, _, _ = drafts_of(shop)
    first = drafts.first()
    chosen = DraftVocabulary(tuple(range(0, first.pair.width, 2)), "model.embed_tokens", "it pays")
    shop.data.names.vocabularies.keep(first.pair.identity.draft, chosen)
    candidate = drafts.candidate("v0001")
    shop.data.registry.promote("v0001")
    second = drafts.renewed(first, LOOK_EVERY)
    assert second is not None
    for pair in (candidate, second.pair):
        assert pair.vocabulary == chosen
        assert mx.isinf(pair.draft(mx.array([[1, 2]]))[..., 1::2]).all().item()
    assert not mx.isinf(first.pair.draft(mx.array([[1, 2]]))).any().item()  # requests under way end with it
    settings = Settings(sampler(0.8), "rejection", num_draft_tokens=3, max_tokens=24)
    rounds = list(Decoding(second.pair, [1, 2, 3], settings))
    assert {token % 2 for round_ in rounds for token in round_.proposals} == {0}
    assert {token % 2 for round_ in rounds for token in round_.tokens} == {0, 1}


def test_what_a_draft_takes_of_the_memory_as_it_decodes_is_taken_before_requests_get_the_rest(tmp_path: Path) -> None:
    shop = shop_at(tmp_path)
    shop.data.registry.promote("v0001")
    drafts, _, _ = drafts_of(shop)
    merged: list[bool] = []

    def noting(pair: Pair) -> Served:
        merged.append(not lora.is_attached(pair.draft))
        return served(pair)

    drafts._serve = noting
    assert drafts.first().pair.adapter == "v0001"
    assert merged == [True]


@pytest.mark.parametrize("adapter", [None, "v0001"])
def test_latencies_of_a_bare_self_draft_are_kept_as_no_other_ones(
    tmp_path: Path, small_pair: Pair, adapter: str | None
) -> None:
    """The server began with the bare draft, and ends with a champion whose latencies nobody measured."""
    data, profile = DataDirectory(tmp_path), LatencyProfile(0.001, (0.01, 0.011))
    pair = replace(small_pair, self_layers=SelfLayers(1, is_settled=True, why="a test"))
    key = machine_fingerprint(pair, greedy=True)
    began = Served(pair, Speculative(), {True: profile}, "rejection", measured={True: key})
    keep_experience(began.with_pair(replace(pair, adapter=adapter)), data, lambda _line: None)
    kept = data.costs.of(machine_fingerprint(replace(pair, adapter=adapter), greedy=True))
    assert (kept is not None) == (adapter is None)


def test_a_bare_self_draft_of_other_layers_is_another_reader() -> None:
    """After a rollback to the bare draft, what one of fewer layers has read must not be found."""
    models = Models(target="embedded:target", draft="self")
    pair = load_pair(models)
    other = with_self_layers(pair, models, SelfLayers(3, is_settled=True, why="it pays"))
    assert reader_of(pair) != reader_of(other)
    assert reader_of(pair) == reader_of(pair.twin()) != reader_of(replace(pair, adapter="v0001"))
