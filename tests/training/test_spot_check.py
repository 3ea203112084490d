"""Spot checks with the embedded pair: what its target wrote is never contradicted, and what somebody made up is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import orjson
import pytest
from shop import config_of

from draftloop.collection.collect import CollectSettings, collect_data
from draftloop.config import Config, Models, Training
from draftloop.data.record_lines import to_line
from draftloop.data.records import Record
from draftloop.data_directory import DataDirectory
from draftloop.decoding.generate import decoding_settings
from draftloop.errors import NothingToDo
from draftloop.models import adapter as lora
from draftloop.models.pair import Pair, load_pair
from draftloop.prompts.prompt import Prompt
from draftloop.training.dataset.contradiction import CONTRADICTED, CONTRADICTED_SOURCE, CheckedRecord
from draftloop.training.spot_check import check_records
from draftloop.training.train import train

PROMPTS = [
    f"The {a} of the {b} is" for a in ("colour", "end", "name", "size") for b in ("house", "river", "sea", "tree")
]
ALL = Training(spot_check_share=1.0)


def records_at(root: Path, pair: Pair, live: bool = False, **speculative: object) -> list[Record]:
    """Outputs of the target, collected as `collect-data` does; as failures of the split `train`."""
    config = Config.model_validate({"speculative": {"max_tokens": 24, **speculative}})
    log = DataDirectory(root).log
    settings = CollectSettings(decoding_settings(config.speculative), source="honest", live=live)
    collect_data(pair, [Prompt(text) for text in PROMPTS], log, settings)
    return [replace(record, split="train") for record in log.records() if record.is_failure]


@pytest.fixture(scope="module")
def honest(embedded_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return records_at(tmp_path_factory.mktemp("honest"), embedded_pair)


@pytest.fixture
def bare(embedded_pair: Pair) -> Iterator[Pair]:
    yield embedded_pair
    lora.detach(embedded_pair.draft)


def differences(checked: list[CheckedRecord]) -> list[float]:
    return [one.difference for one in checked]


def nobody(_done: int, _of: int) -> None:
    """Nobody watches."""


def made_up(records: list[Record], seed: int = 0) -> list[Record]:
    """Outputs that the target did not write, with the figures of those that it did."""
    random = np.random.default_rng(seed)
    forged = []
    for record in records:
        output = tuple(int(i) for i in random.integers(0, 2_000, len(record.target_output)))
        rejected = tuple(replace(one, target_token=output[one.position]) for one in record.disagreements)
        forged.append(
            replace(record, id=f"{int(record.id, 16) ^ 1:032x}", target_output=output, disagreements=rejected)
        )
    return forged


def with_wrong_figures(records: list[Record]) -> list[Record]:
    """Outputs of the target, with log p's that somebody made up."""
    return [replace(record, log_p=(-4.0,) * len(record.log_p)) for record in records]


@pytest.mark.some(3)
@pytest.mark.parametrize("live", [False, True], ids=["in a batch", "live"])
@pytest.mark.parametrize("sampler", [{}, {"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 20}], ids=str)
def test_what_the_target_wrote_is_not_contradicted(
    embedded_pair: Pair, tmp_path: Path, sampler: dict[str, object], live: bool
) -> None:
    found = differences(check_records(embedded_pair, records_at(tmp_path, embedded_pair, live, **sampler), ALL, nobody))
    assert len(found) > 5
    assert max(found) < 0.01  # float32: rounding alone


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_16_bits_stay_far_below_what_contradicts(embedded_pair: Pair, tmp_path: Path, temperature: float) -> None:
    """Written in float32 and read in 16 bits, which is more than one machine does by itself; near-ties too."""
    records = records_at(tmp_path, embedded_pair, temperature=temperature)
    pair = load_pair(Models())
    pair.target.set_dtype(mx.bfloat16)
    found = differences(check_records(pair, records, ALL, nobody))
    assert max(found) < 0.1


@pytest.mark.parametrize("forge", [made_up, with_wrong_figures])
def test_what_somebody_made_up_is_contradicted(embedded_pair: Pair, honest: list[Record], forge) -> None:
    checked = check_records(embedded_pair, forge(honest), ALL, nobody)
    assert min(differences(checked)) > 1.0
    assert all(one.is_contradicted for one in checked)


def workplace(root: Path, records: list[Record], **training: object) -> tuple[DataDirectory, Config]:
    config = config_of(Models(), training={"epochs": 1, "lora": {"rank": 2}, **training})
    data = DataDirectory(root)
    data.log.path.parent.mkdir(parents=True)
    data.log.path.write_bytes(b"".join(map(to_line, records)))
    return data, config


def test_a_source_of_made_up_records_is_left_out_and_counts_as_handled(
    bare: Pair, honest: list[Record], tmp_path: Path
) -> None:
    forged = [replace(record, source="forger") for record in made_up(honest)]
    data, config = workplace(tmp_path / "data", [*honest, *forged])
    result = train(bare, data, config, quiet=True)
    assert result.failures == len(honest)
    assert result.left_out == {CONTRADICTED_SOURCE: len(forged)}
    (line,) = result.warnings
    assert "checked records of source forger" in line
    assert "draftloop log rm --source forger" in line
    manifest = data.registry.manifest(result.version)
    assert {record.id for record in forged} <= set(manifest.passed_over_ids)
    assert not {record.id for record in forged} & set(manifest.record_ids)
    assert line in (Path(result.run_path) / "train.log").read_text()
    saved = orjson.loads((Path(result.run_path) / "material.json").read_bytes())
    assert not {record.id for record in forged} & {*saved["failures"], *saved["replay_pool"], *saved["validation"]}


def test_one_contradicted_record_is_left_out_alone(bare: Pair, honest: list[Record], tmp_path: Path) -> None:
    (wrong,) = with_wrong_figures(honest[:1])
    data, config = workplace(tmp_path / "data", [wrong, *honest[1:]], spot_check_share=1.0)
    result = train(bare, data, config, quiet=True)
    assert result.left_out == {CONTRADICTED: 1}
    assert result.failures == len(honest) - 1
    assert "contradicts 1 of " in result.warnings[0]


def test_where_nothing_else_is_left_there_is_nothing_to_train_on(
    bare: Pair, honest: list[Record], tmp_path: Path
) -> None:
    data, config = workplace(tmp_path / "data", with_wrong_figures(honest))
    with pytest.raises(NothingToDo, match=r"no usable failure is left: .* log rm --source honest"):
        train(bare, data, config, quiet=True)
    assert data.registry.versions() == []


@pytest.mark.parametrize(
    ("settings", "said"), [({"teacher": "none"}, "is not live"), ({"spot_check_share": 0.0}, None)], ids=str
)
def test_without_the_target_or_a_share_nothing_is_checked_and_the_notes_say_so(
    bare: Pair, honest: list[Record], tmp_path: Path, settings: dict[str, object], said: str | None
) -> None:
    data, config = workplace(tmp_path / "data", with_wrong_figures(honest), **settings)
    result = train(bare, data, config, quiet=True)
    assert (result.left_out, result.warnings) == ({}, ())
    notes = (Path(result.run_path) / "train.log").read_text()
    assert ("no record is checked against the target" in notes) == (said is not None)
