"""A directory of data that draftloop 0.1 began goes on, and what changes overnight on the Hub orphans nothing.

What 0.1 wrote differs from what is written today in the models' names alone, and in having no `models.json`. So it is
made with the former fingerprints put in place of today's, and that file taken away.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from model_dirs import add_token, edit_json, models_in, swap_tokens, write_pair
from shop import PROMPTS, Shop, config_of, never
from stops import StopAfter

from draftloop.collection.collect import ALREADY_COLLECTED
from draftloop.data_directory import DataDirectory
from draftloop.errors import AdapterError, Interrupted
from draftloop.models.fingerprints import Fingerprints
from draftloop.models.hub import local_fingerprints
from draftloop.models.names import FILE, ModelNames
from draftloop.models.pair import Pair, load_pair
from draftloop.retraining.facts import History, read_facts
from draftloop.training.train import resume, train

Change = Callable[[Path], object]
SOME = PROMPTS[:8]


class _Former(ModelNames):
    """What draftloop 0.1 called models."""

    def of(self, model: Fingerprints) -> str:
        return model.former


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and data that draftloop 0.1 collected and promoted a version in. Nobody changes it."""
    root = tmp_path_factory.mktemp("begun")
    shop = Shop(DataDirectory(root / "data"), config_of(write_pair(root)))
    vars(shop.data)["names"] = _Former(shop.data.root)  # in place of the cached property
    shop.collect(PROMPTS)
    assert shop.retrain().outcome == "promoted"
    shop.collect(SOME)  # under the champion, and too few to train on
    (root / "data" / FILE).unlink()
    return root


@pytest.fixture
def old(begun: Path, tmp_path: Path) -> Shop:
    """The same in a directory of its own."""
    root = Path(shutil.copytree(begun, tmp_path / "begun"))
    return Shop(DataDirectory(root / "data"), config_of(models_in(root)))


def again(shop: Shop) -> Shop:
    """The next process."""
    return Shop(DataDirectory(shop.data.root), shop.config)


def champion_of(shop: Shop) -> Pair:
    path = shop.data.registry.resolve("champion")
    assert path is not None
    return load_pair(shop.config.models, path, path.name, names=shop.data.names)


def space_in_the_template(directory: Path) -> None:
    path = directory / "tokenizer_config.json"
    edit_json(path, chat_template=json.loads(path.read_text())["chat_template"] + " ")


def another_sampler(directory: Path) -> None:
    (directory / "generation_config.json").write_text('{"temperature": 0.6}')


OVERNIGHT: dict[str, tuple[tuple[str, Change], ...]] = {
    "nothing": (),
    "a space in the draft's template": (("draft", space_in_the_template),),
    "a space in the target's template": (("target", space_in_the_template),),
    "the suggested samplers": (("target", another_sampler), ("draft", another_sampler)),
    "all of it": (("target", another_sampler), ("draft", another_sampler), ("target", space_in_the_template)),
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=name, marks=() if name == "nothing" else pytest.mark.slow)
        for name, changes in OVERNIGHT.items()
    ],
)
def test_champion_records_epoch_and_history_go_on(changes: tuple[tuple[str, Change], ...], old: Shop) -> None:
    before = read_facts(old.data, old.config, 0.0)
    assert (before.overview.generations, before.overview.other_pairs) == (len(PROMPTS) + len(SOME), 0)
    settled = History(old.data.audit.entries(), before.target).settled(before.overview.ids)
    assert settled == len(PROMPTS)
    assert old.retrain(load=never).outcome == "nothing"  # the hourly run
    files = local_fingerprints(old.config.models.target)
    for role, change in changes:
        change(old.data.root.parent / role)

    shop = again(old)
    after = read_facts(shop.data, shop.config, 0.0)
    assert (files is not None and after.target) == before.target == (files and files.former)
    assert (after.overview.other_pairs, after.overview.candidate) == (0, None)
    assert after.overview.failures == before.overview.failures > 0
    assert after.drift_checks == before.drift_checks
    assert History(shop.data.audit.entries(), after.target).settled(after.overview.ids) == settled
    pair = champion_of(shop)
    assert pair.adapter == "v0001"
    epoch = shop.data.verdicts.epoch(pair.identity)
    assert epoch is not None
    assert (epoch.number, len(epoch.attempts)) == (1, 1)

    report = shop.collect(SOME)
    if ("target", space_in_the_template) in changes:
        assert report.generations == len(SOME)  # other prompt ids
    else:
        assert (report.generations, report.skipped) == (0, {ALREADY_COLLECTED: len(SOME)})
    found = shop.retrain(force=True)
    assert found.trained
    assert found.outcome in ("promoted", "refused")
    manifest = shop.data.registry.manifest("v0002")
    assert manifest.parent == "v0001"
    assert manifest.pair == pair.identity
    assert len(manifest.record_ids) > 30
    verdict = shop.data.verdicts.of("v0002")
    assert verdict is not None
    assert verdict.epoch in (0, 2)  # after the first, which ended at its promotion; 0 where it was not scored


def other_weights(directory: Path) -> None:
    shard = directory / "model.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)


OTHER_MODELS: dict[str, Change] = {
    "a weight": other_weights,
    "the vocabulary": lambda root: swap_tokens(root, 70, 140),
    "an added token": lambda root: add_token(root, "<new>"),
    "a token in added_tokens.json": lambda root: (root / "added_tokens.json").write_text('{"<new>": 300}'),
    "the config": lambda root: edit_json(root / "config.json", rope_theta=5.0),
}


@pytest.mark.parametrize("change", OTHER_MODELS.values(), ids=OTHER_MODELS)
def test_another_model_is_refused_as_before(change: Change, old: Shop) -> None:
    old.retrain(load=never)
    for role in ("target", "draft"):  # both, for they need one vocabulary
        change(old.data.root.parent / role)
    shop = again(old)
    facts = read_facts(shop.data, shop.config, 0.0)
    assert facts.overview.other_pairs == facts.overview.generations > 0
    with pytest.raises(AdapterError, match="was trained for draft"):
        champion_of(shop)


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on_whatever_became_of_the_template(old: Shop) -> None:
    vars(old.data)["names"] = _Former(old.data.root)
    pair = load_pair(old.config.models, names=old.data.names)
    with pytest.raises(Interrupted):
        train(pair, old.data, old.config, quiet=True, stop=StopAfter(3))
    shop = again(old)
    shop.retrain(load=never)
    for role in ("target", "draft"):
        space_in_the_template(shop.data.root.parent / role)
    assert resume("latest", again(old).data, quiet=True).version == "v0002"


def test_what_nobody_saw_to_be_one_model_is_two(old: Shop) -> None:
    """The former fingerprint cannot be undone: a template that changed before the first run of today orphans still."""
    space_in_the_template(old.data.root.parent / "draft")
    with pytest.raises(AdapterError, match="was trained for draft"):
        champion_of(old)


def test_an_adapter_of_such_a_directory_fits_its_draft_elsewhere(old: Shop, tmp_path: Path) -> None:
    path = old.data.registry.resolve("champion")
    assert path is not None
    elsewhere = DataDirectory(tmp_path / "elsewhere")
    assert load_pair(old.config.models, path, names=elsewhere.names).adapter == "v0001"


def test_a_directory_of_today_knows_its_models_whatever_becomes_of_their_templates(small_shop: Shop) -> None:
    shop = small_shop
    shop.collect(PROMPTS[:15])
    before = champion = load_pair(shop.config.models, names=shop.data.names).identity
    for role in ("target", "draft"):
        space_in_the_template(shop.data.root.parent / role)
        another_sampler(shop.data.root.parent / role)
    assert load_pair(shop.config.models, names=again(shop).data.names).identity == before == champion
    assert read_facts(again(shop).data, shop.config, 0.0).overview.other_pairs == 0


@pytest.fixture
def small_shop(tmp_path: Path) -> Shop:
    """An empty data directory beside models of its own."""
    return Shop(DataDirectory(tmp_path / "data"), config_of(write_pair(tmp_path)))


def test_the_guard_of_these_tests_is_real(old: Shop) -> None:
    """The directory holds the former fingerprints and not those of today, and no file that says so."""
    files = [local_fingerprints(name) for name in (old.config.models.target, old.config.models.draft)]
    everything = b"".join(path.read_bytes() for path in old.data.root.rglob("*") if path.is_file())
    for found in files:
        assert found is not None
        assert found.former.encode() in everything
        assert found.model.encode() not in everything
    assert not (old.data.root / FILE).exists()
