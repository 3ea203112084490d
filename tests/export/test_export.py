"""An export is whole or not there, loads in plain mlx-lm, says what was measured of it, and holds nobody's text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from builders import CountingFiles, failing_files, make_record
from log_files import file_size_limit
from mlx_lm.models.llama import Model
from model_dirs import edit_json, foreign, models_in, swap_tokens, write_llama, write_lora, write_pair
from mortal import HANGS
from tiny import sampler

from draftloop.caches import read_whole
from draftloop.config import Config, Models, Speculative
from draftloop.data.records import Record
from draftloop.errors import AdapterError, ExportError, PairError, StoreError, UsageError
from draftloop.evaluation.benchmark import logged_samples
from draftloop.export.export import Exported, ExportPlan, export_version, plan_export
from draftloop.export.fuse import Quantization
from draftloop.export.verify import measure_export
from draftloop.models.draft_vocabulary import DraftVocabulary
from draftloop.models.fingerprints import fingerprints
from draftloop.models.manifest import verify_adapter
from draftloop.models.pair import Pair, load_pair
from draftloop.models.short_head import place_of_head
from draftloop.registry.registry import Registry

SECRET = "the wedding of Zebulon and Xanthippe"
IDS = mx.array([[5, 1, 9, 30, 2, 7, 250, 11]])


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(models=write_pair(tmp_path / "models"), speculative=Speculative(num_draft_tokens=3))


@pytest.fixture
def pair(config: Config) -> Pair:
    return load_pair(config.models)


@pytest.fixture
def registry(pair: Pair, tmp_path: Path) -> Registry:
    """v0001 of the small draft, trained on two records."""
    found = Registry(tmp_path / "data" / "adapters")
    fields = {"pair": pair.identity, "record_ids": ["0" * 32, "1" * 32], "parent": None}
    found.create(lambda path: write_lora(path, pair.draft, amount=0.3) and None, fields)
    return found


@pytest.fixture
def records(pair: Pair) -> list[Record]:
    return held_out(pair)


def held_out(pair: Pair, count: int = 6) -> list[Record]:
    """Generations of the pair's target, each from a prompt of its own."""
    rng = np.random.default_rng(0)
    common: dict[str, Any] = {"pair": pair.identity, "split": "heldout", "sampler": sampler(0.8)}
    found = []
    for number in range(count):
        prompt, output = (tuple(int(i) for i in rng.integers(1, 280, size)) for size in (4, 8))
        text = f"{SECRET} {'x' * number}"
        found.append(make_record(prompt=text, prompt_tokens=prompt, target_output=output, **common))
    return found


def job(
    registry: Registry,
    destination: Path,
    *,
    fuse: bool = True,
    bits: int | None = None,
    group_size: int | None = None,
    dequantize: bool = False,
) -> ExportPlan:
    return plan_export(
        registry, "latest", destination, fuse=fuse, quantization=Quantization(bits, group_size, dequantize)
    )


def logits(directory: Path | str, adapter: Path | None = None) -> mx.array:
    return mlx_lm.load(str(directory), adapter_path=None if adapter is None else str(adapter))[0](IDS)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# -- the two forms ----------------------------------------------------------------------------------------------------


def test_an_adapter_alone_is_taken_by_plain_mlx_lm_as_it_is(
    tmp_path: Path, registry: Registry, pair: Pair, config: Config, records: list[Record]
) -> None:
    made = export_version(job(registry, tmp_path / "out", fuse=False), pair, config, records)
    out = tmp_path / "out"
    assert names(out) == {"adapters.safetensors", "adapter_config.json", "manifest.json", "README.md"}
    manifest, own = verify_adapter(out), registry.manifest("v0001")
    assert manifest is not None
    assert (manifest.files, manifest.pair, manifest.created) == (own.files, own.pair, own.created)
    assert (manifest.record_ids, manifest.config) == ((), {})  # neither what it learned from nor where that lay
    draft = config.models.draft
    assert mx.array_equal(logits(draft, out), logits(draft, registry.root / "v0001"))
    assert not mx.array_equal(logits(draft, out), logits(draft))
    assert (made.path, made.version, made.fused, made.weights) == (str(out), "v0001", False, "LoRA, rank 4, scale 1")
    assert (made.quantization, made.bits_per_weight, made.fingerprint) == (None, None, None)


def test_a_fused_draft_is_a_model_of_its_own_with_the_logits_of_draft_and_adapter(
    tmp_path: Path, registry: Registry, pair: Pair, config: Config, records: list[Record]
) -> None:
    made = export_version(job(registry, tmp_path / "out"), pair, config, records)
    together = logits(config.models.draft, registry.root / "v0001")
    assert float(mx.abs(logits(tmp_path / "out") - together).max().item()) < 1e-4
    assert made.fused
    assert made.fingerprint == fingerprints(tmp_path / "out").model != pair.identity.draft
    assert made.weights == "not quantized, 32 bits a weight"


def test_a_fused_draft_makes_a_pair_with_its_target(
    tmp_path: Path, registry: Registry, pair: Pair, config: Config
) -> None:
    export_version(job(registry, tmp_path / "out", bits=4, group_size=32), pair, config, [])
    again = load_pair(config.models.model_copy(update={"draft": str(tmp_path / "out")}))
    assert again.identity.tokenizer == pair.identity.tokenizer
    assert again.width == pair.width


def test_the_draft_that_was_exported_can_be_trained_on_from_the_bare_draft_again(
    tmp_path: Path, registry: Registry, pair: Pair, config: Config
) -> None:
    """The versions of the old draft do not fit the new one, and are refused instead of being added twice."""
    export_version(job(registry, tmp_path / "out"), pair, config, [])
    again = load_pair(config.models.model_copy(update={"draft": str(tmp_path / "out")}))
    with pytest.raises(AdapterError, match="was trained for draft"):
        again.with_adapter(registry.root / "v0001")


# -- a draft that is made of the target's own layers -------------------------------------------------------------------


@pytest.fixture
def of_its_own(tmp_path: Path) -> tuple[Pair, Config, Registry]:
    """A target of four layers that drafts with two of them, and v0001 of that draft."""
    target = write_llama(tmp_path / "own", layers=4)
    config = Config(models=Models(target=str(target), draft="self:2"), speculative=Speculative(num_draft_tokens=3))
    pair, registry = load_pair(config.models), Registry(tmp_path / "data" / "adapters")
    fields = {"pair": pair.identity, "record_ids": ["0" * 32], "parent": None}
    registry.create(lambda path: write_lora(path, pair.draft, amount=0.3) and None, fields)
    return pair, config, registry


def test_a_self_draft_is_written_as_a_model_of_its_own(
    tmp_path: Path, of_its_own: tuple[Pair, Config, Registry]
) -> None:
    pair, config, registry = of_its_own
    before = {path: path.read_bytes() for path in Path(config.models.target).iterdir()}
    made = export_version(job(registry, tmp_path / "out"), pair, config, held_out(pair))
    model, tokenizer = mlx_lm.load(str(tmp_path / "out"))[:2]
    assert len(model.layers) == 2
    assert tokenizer.get_vocab() == pair.tokenizer.get_vocab()
    together = read_whole(pair.with_adapter(registry.root / "v0001").draft, IDS)
    assert float(mx.abs(model(IDS) - together).max().item()) < 1e-4
    assert made.measured is not None
    assert made.measured.lost() == []
    assert "the first 2 layers of `own`" in (tmp_path / "out" / "README.md").read_text()
    assert {path: path.read_bytes() for path in before} == before  # the target is never touched
    assert load_pair(Models(target=config.models.target, draft=str(tmp_path / "out"))).width == pair.width


def test_an_adapter_alone_of_a_self_draft_lies_on_nothing_that_mlx_lm_loads(
    tmp_path: Path, of_its_own: tuple[Pair, Config, Registry]
) -> None:
    pair, config, registry = of_its_own
    with pytest.raises(ExportError, match=r"no model that mlx-lm could load it on.*--fuse"):
        export_version(job(registry, tmp_path / "out", fuse=False), pair, config, [])
    assert not (tmp_path / "out").exists()


# -- what is measured -------------------------------------------------------------------------------------------------


def test_what_is_shipped_in_float_scores_as_draft_and_adapter(
    tmp_path: Path, registry: Registry, pair: Pair, config: Config, records: list[Record]
) -> None:
    for fuse in (False, True):
        made = export_version(job(registry, tmp_path / f"out-{fuse}", fuse=fuse), pair, config, records)
        assert made.measured is not None
        rows = {(row.adapter, row.rule): row for row in made.measured.results}
        assert len(rows) == 9
        for rule in ("rejection", "match"):
            adapted, shipped = rows["v0001", rule], rows["exported", rule]
            assert shipped.acceptance_length == pytest.approx(adapted.acceptance_length, abs=1e-4)
            assert shipped.acceptance_per_position == pytest.approx(adapted.acceptance_per_position, abs=1e-4)
            assert abs(shipped.acceptance_per_position - rows["none", rule].acceptance_per_position) > 0.01


def test_what_the_draft_may_propose_here_does_not_bind_what_is_shipped(
    tmp_path: Path, registry: Registry, pair: Pair, config: Config, records: list[Record]
) -> None:
    head = place_of_head(pair.draft)
    assert head is not None
    few = replace(pair, vocabulary=DraftVocabulary((0, 1), head, "a test"))
    measured = [
        export_version(job(registry, tmp_path / name, fuse=False), one, config, records).measured
        for name, one in (("few", few), ("all", pair))
    ]
    assert measured[0] == measured[1]


def test_what_is_measured_is_the_quantized_draft_that_lies_there(
    tmp_path: Path, registry: Registry, pair: Pair, config: Config, records: list[Record]
) -> None:
    made = export_version(job(registry, tmp_path / "out", bits=2, group_size=32), pair, config, records)
    assert made.measured is not None
    there = load_pair(config.models.model_copy(update={"draft": str(tmp_path / "out")}))
    adapter = ("v0001", registry.root / "v0001")
    expected = measure_export(pair, there, adapter, logged_samples(records, pair), 3, seed=0)
    assert made.measured == expected
    rows = {row.adapter: row for row in expected.results if row.rule == "rejection"}
    assert rows["exported"].acceptance_length != pytest.approx(rows["v0001"].acceptance_length, abs=1e-3)
    assert made.quantization == {"bits": 2, "group_size": 32, "mode": "affine"}


def test_the_card_holds_the_numbers_of_the_json_and_their_conditions(
    tmp_path: Path, registry: Registry, pair: Pair, config: Config, records: list[Record]
) -> None:
    made = export_version(job(registry, tmp_path / "out", bits=4, group_size=32), pair, config, records)
    found = json.loads(json.dumps(made.to_json(), allow_nan=False))
    card = (tmp_path / "out" / "README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines() if line.startswith("| ")]
    words = {"none": "bare draft", "v0001": "draft + adapter", "exported": "this export, from its files"}
    for row in found["measured"]["results"]:
        numbers = [f"{row[n]:.4f}" for n in ("acceptance_per_position", "acceptance_rate", "acceptance_length")]
        interval = f"[{row['ci_low']:.4f}, {row['ci_high']:.4f}]"
        assert [words[row["adapter"]], row["rule"], "3", *numbers, interval] in rows
    for change in found["measured"]["comparison"]:
        what = f"{words[change['of']]} minus {words[change['against']]}"
        (line,) = (cells for cells in rows if cells[:2] == [what, change["rule"]])
        assert line[3] == f"{change['delta_acceptance_length']:+.4f}"
        assert line[4] == f"[{change['ci_low']:+.4f}, {change['ci_high']:+.4f}]"
    conditions = found["measured"]["conditions"]
    for name in ("target", "draft", "tokenizer"):
        assert f"{name} {conditions['pair'][name][:12]}" in card
    assert f"this model {found['fingerprint'][:12]}" in card
    assert f"6 generations of 6 prompts, 48 tokens, prompt set {conditions['prompts_sha256'][:12]}" in card
    assert "learned from 2 generations" in card
    assert all(f"{name} {version}" in card for name, version in found["versions"].items())


def test_without_a_held_out_generation_it_says_so_and_exports_all_the_same(
    tmp_path: Path, registry: Registry, pair: Pair, config: Config
) -> None:
    made = export_version(job(registry, tmp_path / "out"), pair, config, [])
    assert (made.measured, made.not_measured) == (None, "no held-out generation")
    assert "Not measured: no held-out generation.\n" in (tmp_path / "out" / "README.md").read_text()
    other = [replace(record, pair=replace(pair.identity, target="e" * 64)) for record in held_out(pair, 4)]
    made = export_version(job(registry, tmp_path / "other"), pair, config, other)
    assert made.not_measured == "no held-out generation of this target that the pair can be measured on among 4"
    assert logits(tmp_path / "other").shape == logits(tmp_path / "out").shape


@pytest.mark.parametrize("fuse", [True, False])
def test_nothing_of_a_prompt_or_an_output_is_in_any_file(
    fuse: bool, tmp_path: Path, registry: Registry, pair: Pair, config: Config, records: list[Record]
) -> None:
    export_version(job(registry, tmp_path / "out", fuse=fuse), pair, config, records)
    outputs = [", ".join(map(str, record.target_output)) for record in records]
    texts = [SECRET, "wedding", "Zebulon", *outputs, *(record.id for record in records)]
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        assert [text for text in texts if text.encode() in content] == []
        assert re.sub(rb"\s+", b"", SECRET.encode()) not in re.sub(rb"\s+", b"", content)


# -- the place --------------------------------------------------------------------------------------------------------


def test_only_the_directory_that_was_named_is_made_and_it_is_private(
    tmp_path: Path, registry: Registry, pair: Pair, config: Config
) -> None:
    place = tmp_path / "exports" / "deep" / "out"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    export_version(job(registry, place), pair, config, [])
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert {path for path in after if before.get(path) != after[path]} == set(place.iterdir())
    assert names(place.parent) == {"out"}
    assert place.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o600}


def test_an_empty_directory_is_filled(tmp_path: Path, registry: Registry, pair: Pair, config: Config) -> None:
    (tmp_path / "out").mkdir()
    export_version(job(registry, tmp_path / "out"), pair, config, [])
    assert (tmp_path / "out" / "config.json").is_file()


def test_what_is_there_is_never_written_over(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    for taken in ("full", "link", "dangling", "file", "full/thesis.txt"):
        with pytest.raises(UsageError, match="is there already, and nothing is written over"):
            job(registry, tmp_path / taken)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["file/x", "x" * 300, "a\0b", "\ud800"])
def test_a_place_that_cannot_be_is_refused_before_any_work(name: str, tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match="cannot be exported to"):
        job(registry, tmp_path / name)


def test_nothing_is_exported_into_the_data_directory_by_whatever_way(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = registry.root.parent
    (tmp_path / "way").symlink_to(registry.root)
    (tmp_path / "another").symlink_to(data)
    places = [registry.root / "v0009", registry.root / "x" / "y", tmp_path / "way" / "v0009", registry.root]
    places += [data / "out", data, data / ".." / data.name / "out", tmp_path / "another" / "new" / "out"]
    monkeypatch.chdir(data)
    for place in [*places, Path("out"), Path("../another/out")]:
        with pytest.raises(ExportError, match="lies in the data directory"):
            job(registry, place)
    assert job(registry, Path("../out")).destination == tmp_path / "out"


def test_somebody_who_takes_the_place_meanwhile_keeps_it(
    tmp_path: Path, registry: Registry, pair: Pair, config: Config
) -> None:
    def take(_: str) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")

    with pytest.raises(StoreError, match="out could not be written"):
        export_version(job(registry, tmp_path / "out"), pair, config, [], take)
    assert names(tmp_path / "out") == {"mine"}
    assert not list(tmp_path.glob(".tmp-*"))


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_version_that_was_made_for_another_draft_is_refused_before_anything_is_written(
    tmp_path: Path, registry: Registry, pair: Pair, config: Config
) -> None:
    fields = {"pair": foreign(pair.identity)}
    registry.create(lambda path: write_lora(path, pair.draft, amount=0.3) and None, fields)
    with pytest.raises(AdapterError, match="was trained for draft ffffffffffff"):
        export_version(job(registry, tmp_path / "deep" / "out"), pair, config, [])
    assert not (tmp_path / "deep").exists()


def test_a_damaged_version_is_refused(tmp_path: Path, registry: Registry) -> None:
    weights = registry.root / "v0001" / "adapters.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(AdapterError, match=r"v0001/adapters\.safetensors is damaged"):
        job(registry, tmp_path / "out")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("none", "none is the bare draft"),
        ("champion", "champion is the bare draft"),
        ("v0009", "No adapter v0009"),
        ("nowhere", "nowhere is neither none, champion, latest"),
    ],
)
def test_a_version_that_is_not_there_is_refused(
    reference: str, message: str, tmp_path: Path, registry: Registry
) -> None:
    with pytest.raises(AdapterError, match=message):
        plan_export(registry, reference, tmp_path / "out", fuse=True, quantization=Quantization())


def test_an_adapter_from_elsewhere_has_no_history_to_tell_and_is_refused(
    tmp_path: Path, registry: Registry, pair: Pair
) -> None:
    elsewhere = write_lora(tmp_path / "elsewhere", pair.draft, amount=0.3)
    with pytest.raises(AdapterError, match="only versions that draftloop made"):
        plan_export(registry, str(elsewhere), tmp_path / "out", fuse=True, quantization=Quantization())


def test_a_version_that_holds_a_program_is_not_given_away(tmp_path: Path, pair: Pair) -> None:
    found = Registry(tmp_path / "data" / "adapters")

    def write(path: Path) -> None:
        write_lora(path, pair.draft, amount=0.3)
        (path / "own.py").write_text("print('ran')")

    found.create(write, {"pair": pair.identity, "record_ids": [], "parent": None})
    for fuse in (False, True):
        with pytest.raises(AdapterError, match=r"v0001 holds 'own\.py', which is no part of an adapter"):
            job(found, tmp_path / "out", fuse=fuse)


@pytest.mark.parametrize("fuse", [False, True])
def test_python_beside_the_draft_is_not_exported_and_what_is_needs_none(
    fuse: bool, tmp_path: Path, registry: Registry, config: Config
) -> None:
    draft = Path(config.models.draft)
    (draft / "tokenizer_own.py").write_text("raise SystemExit('it ran')")
    for name in ("config.json", "tokenizer_config.json"):
        edit_json(draft / name, auto_map={"AutoTokenizer": [None, "tokenizer_own.Own"]})
    pair = load_pair(config.models)
    registry.create(
        lambda path: write_lora(path, pair.draft, amount=0.3) and None,
        {"pair": pair.identity, "record_ids": [], "parent": None},
    )
    export_version(job(registry, tmp_path / "out", fuse=fuse), pair, config, [])
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".safetensors", ".md"}
    assert not any("auto_map" in path.read_text() for path in (tmp_path / "out").glob("*.json"))


def test_the_champion_and_the_latest_are_found_by_those_names(tmp_path: Path, registry: Registry, pair: Pair) -> None:
    registry.promote("v0001")
    registry.create(lambda path: write_lora(path, pair.draft, amount=0.1) and None, {"parent": "v0001"})
    found = [
        plan_export(registry, reference, tmp_path / "out", fuse=False, quantization=Quantization()).version.name
        for reference in ("champion", "latest", "v0001")
    ]
    assert found == ["v0001", "v0002", "v0001"]


@pytest.mark.parametrize(
    "quantization", [Quantization(bits=4), Quantization(group_size=32), Quantization(None, None, True)]
)
def test_an_adapter_alone_takes_no_quantization(quantization: Quantization, tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(ExportError, match="need --fuse"):
        plan_export(registry, "latest", tmp_path / "out", fuse=False, quantization=quantization)


def test_a_quantization_that_fits_no_layer_leaves_nothing_behind(
    tmp_path: Path, registry: Registry, pair: Pair, config: Config
) -> None:
    with pytest.raises(ExportError, match="choose a smaller --q-group-size"):
        export_version(job(registry, tmp_path / "exports" / "out", bits=4, group_size=128), pair, config, [])
    assert list((tmp_path / "exports").iterdir()) == []


def test_a_fused_draft_whose_weights_mlx_lm_changes_when_it_loads_them_is_not_shipped(
    tmp_path: Path, registry: Registry, pair: Pair, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def normalized(_model: Model, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        head = weights["lm_head.weight"]  # as baichuan_m1 does it
        return {**weights, "lm_head.weight": head / mx.linalg.norm(head, axis=-1, keepdims=True)}

    monkeypatch.setattr(Model, "sanitize", normalized)
    with pytest.raises(ExportError, match=r"mlx-lm changes lm_head.weight .* without --fuse"):
        export_version(job(registry, tmp_path / "exports" / "out"), pair, config, [])
    assert list((tmp_path / "exports").iterdir()) == []


def test_a_draft_whose_tokenizer_changed_since_the_pair_was_loaded_is_not_shipped(
    tmp_path: Path, registry: Registry, pair: Pair, config: Config
) -> None:
    swap_tokens(Path(config.models.draft), 50, 60)
    with pytest.raises(PairError, match="different tokenizers: id 50"):
        export_version(job(registry, tmp_path / "exports" / "out"), pair, config, [])
    assert list((tmp_path / "exports").iterdir()) == []


# -- a disk that fills up ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fuse", [True, False])
def test_a_disk_that_is_full_at_any_step_leaves_no_export_or_a_whole_one(
    fuse: bool, tmp_path: Path, registry: Registry, pair: Pair, config: Config
) -> None:
    (tmp_path / "exports").mkdir()
    counting = CountingFiles()
    export_version(job(registry, tmp_path / "exports" / "whole", fuse=fuse), pair, config, [], files=counting)
    whole = names(tmp_path / "exports" / "whole")
    steps = len(counting.names)
    assert steps > 15
    for step in range(1, steps + 1):
        place = tmp_path / "exports" / str(step)
        with pytest.raises(StoreError, match="No space left"):
            export_version(job(registry, place, fuse=fuse), pair, config, [], files=failing_files(step))
        renamed = step > steps - 2  # only the sync of the parent directory is left
        assert (names(place) if place.exists() else set()) == (whole if renamed else set())
        assert not list((tmp_path / "exports").glob(".tmp-*"))


def test_weights_that_the_system_cuts_short_are_a_store_error_and_not_mlxs_own(
    tmp_path: Path, registry: Registry, pair: Pair, config: Config
) -> None:
    with file_size_limit(20_000), pytest.raises(StoreError, match="out could not be written"):
        export_version(job(registry, tmp_path / "exports" / "out"), pair, config, [])
    assert list((tmp_path / "exports").iterdir()) == []


KILLED = """
import os, signal, sys
from draftloop import prepare_process
prepare_process()
from pathlib import Path
from draftloop.config import Config, Models
from draftloop.export.export import export_version, plan_export
from draftloop.export.fuse import Quantization
from draftloop.models.pair import load_pair
from draftloop.registry.registry import Registry
signal.signal(signal.SIGTERM, signal.default_int_handler)
root = Path(sys.argv[1])
config = Config(models=Models(target=str(root / "models/target"), draft=str(root / "models/draft")))
registry, out = Registry(root / "data/adapters"), root / "exports/out"
job = plan_export(registry, "latest", out, fuse=True, quantization=Quantization())
export_version(job, load_pair(config.models), config, [], lambda _: os.kill(os.getpid(), signal.SIGTERM))
"""


def test_a_terminated_export_leaves_nothing_behind(tmp_path: Path, registry: Registry, config: Config) -> None:
    assert config.models == models_in(tmp_path / "models")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, timeout=HANGS, check=False
    )
    assert b"KeyboardInterrupt" in done.stderr
    assert list((tmp_path / "exports").iterdir()) == []


def test_the_result_is_plain_values(tmp_path: Path, registry: Registry, pair: Pair, config: Config) -> None:
    made = export_version(job(registry, tmp_path / "out"), pair, config, held_out(pair, 1))
    assert isinstance(made, Exported)
    found = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert found["measured"]["results"][0]["ci_low"] is None  # one prompt alone gives no interval
    assert "n/a" in (tmp_path / "out" / "README.md").read_text()
