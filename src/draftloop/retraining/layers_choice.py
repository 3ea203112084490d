"""How many of the target's own layers a self-draft gets: short trainings at a few numbers, and the best forecast.

    the first failures ─┐                     ┌-> acceptance length by K on what it was not trained on ┐
                        ├-> a short training ─┤                                                         ├-> forecast
    N of a few ─────────┘                     └-> seconds of a draft step, of a target pass ────────────┘

More layers are accepted more and cost more; which number pays depends on the machine. It is chosen once in a data
directory, for with another one everything that was learned begins anew. Held-out prompts are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..config import Config, Models
from ..data.records import Record
from ..data.usable import why_not_measured
from ..data_directory import DataDirectory
from ..errors import Interrupted, NothingToDo
from ..evaluation.draft_trials import QUICKLY, try_drafts
from ..evaluation.gate_target import LoadedTarget
from ..models.cut_config import count_layers
from ..models.draft_vocabulary import DraftVocabulary
from ..models.hub import find_model
from ..models.loading import read_model_config
from ..models.pair import Pair, with_self_layers
from ..models.self_draft import least_layers
from ..models.self_layers import LayersTrial, SelfLayers
from ..runtime.signals import StopRequest
from ..training.train import OnStep, train
from .layer_trials import trial_directory
from .vocabulary_choice import size_of, vocabularies_to_try

SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8)  # of the target's layers, that are tried
FAILURES = 100  # the first ones, of which the last are not trained on
MEASURED_SHARE = 1 / 5  # of them, that are measured on instead
LEAST_FAILURES = 20  # with fewer nothing is chosen yet
MEASURED = 30  # more generations, of the split `validation`, that are measured on
EPOCHS = 6  # of a trial

Say = Callable[[str], None]


def settle_layers(
    pair: Pair,
    data: DataDirectory,
    config: Config,
    say: Say = lambda _: None,
    on_step: OnStep = lambda _done, _of: None,
    stop: StopRequest | None = None,
    target: LoadedTarget | None = None,
) -> Pair:
    """The pair with as many layers as pay most, chosen now and kept; as it is, where there is nothing to choose.

    Args:
        pair: with whatever draft; one that is no self-draft, or whose number is settled, is returned as it is. One that
            carries a version (of `self:N`, say, with the N that `self` begins with) keeps its number and the version.
        data: of its first failures most are learned from; the others, and some of the split `validation`, measured on.
        config: resolved.
        say: told what is being done, and what came of it.
        on_step, stop: as in `train`.
        target: scores and times; by default that of the pair, timed quickly.

    Raises:
        NothingToDo: there are too few failures yet.
        StoreError: the disk refused.
        TrainingFailed, Interrupted: as in `train`; nothing was chosen.
    """
    if pair.self_layers is None or pair.self_layers.is_settled:
        return pair
    if pair.adapter is not None:
        return without_trials(pair, data, "versions of that many are in use")
    failures, validation = _texts(pair, data)
    if len(failures) < LEAST_FAILURES:
        raise NothingToDo(
            f"models.draft is self, and its number of layers is chosen on the first {FAILURES} failures: there are "
            f"{len(failures)} that can be trained on, expected at least {LEAST_FAILURES}; collect more, or give the "
            "number (models.draft: self:N)"
        )
    numbers, trials = numbers_to_try(pair, config.models), []
    learned = len(failures) - int(MEASURED_SHARE * len(failures))
    measured = [*failures[learned:], *validation]
    with trial_directory(data) as scratch:
        scratch.log.extend(failures[:learned])
        for number, layers in enumerate(numbers, 1):
            say(f"choosing the layers of the self-draft: {layers} of the target's, {number} of {len(numbers)} tried")
            cut = with_self_layers(pair, config.models, SelfLayers(layers, is_settled=False, why="a trial"))
            try:
                result = train(cut, scratch, _short(config), on_step=on_step, stop=stop)
            except Interrupted:
                raise Interrupted(
                    "while the layers of the self-draft were chosen; the next training begins with that again"
                ) from None
            cut = cut.with_adapter(scratch.registry.root / result.version)
            trials.append(_best(cut, data, measured, config, target or LoadedTarget(QUICKLY)))
    chosen = choose(trials)
    data.names.self_layers.keep(pair.identity.target, chosen)
    say(chosen.why)
    return with_self_layers(pair, config.models, chosen, data.names)


def without_trials(pair: Pair, data: DataDirectory, why: str) -> Pair:
    """The pair with the number of layers that it has, kept for good, where none can be tried."""
    if pair.self_layers is None or pair.self_layers.is_settled:
        return pair
    kept = replace(pair.self_layers, is_settled=True, why=f"{pair.self_layers.layers} layers by rule: {why}")
    data.names.self_layers.keep(pair.identity.target, kept)
    return replace(pair, self_layers=kept)


def choose(trials: Sequence[LayersTrial]) -> SelfLayers:
    """The number with the highest forecast, and the sentence that says so."""
    best = max(trials, key=lambda trial: trial.forecast)
    gave = ", ".join(
        f"{one.layers}: {one.acceptance:.3f} accepted per position, {one.forecast:.2f}x at K = {one.num_draft_tokens}"
        for one in trials
    )
    why = f"{best.layers} layers have the highest forecast after a short training of each ({gave})"
    return SelfLayers(best.layers, is_settled=True, why=why, trials=tuple(trials))


def numbers_to_try(pair: Pair, models: Models) -> list[int]:
    """A few numbers of layers of which a draft decodes, fewest first."""
    config = read_model_config(find_model(models.target))
    count = count_layers(config) or 0
    wanted = {max(1, min(count - 1, round(count * share))) for share in SHARES}
    return sorted({least_layers(pair.target, config, layers) for layers in wanted})


def _texts(pair: Pair, data: DataDirectory) -> tuple[list[Record], list[Record]]:
    """The first failures, and the first generations of the split `validation`."""
    failures: list[Record] = []
    validation: list[Record] = []
    for record in data.log.records(splits={"train", "validation"}):
        if why_not_measured(record, pair.identity, pair.width) is not None:
            continue
        if record.split == "validation" and len(validation) < MEASURED:
            validation.append(record)
        elif record.split == "train" and record.is_failure and len(failures) < FAILURES:
            failures.append(replace(record, teacher=None))  # its blob lies elsewhere
    return failures, validation


def _short(config: Config) -> Config:
    """A training of a few passes, without new samples and replay; the target teaches, for what was kept of it is not
    at hand.
    """
    minutes, teacher = config.training.max_minutes, config.training.teacher
    short = {
        "teacher": "live" if teacher == "logged" else teacher,
        "epochs": EPOCHS,
        "answers": 0,
        "proposals": 0,
        "spot_check_share": 0.0,
        "replay_ratio": 0.0,
        "max_minutes": None if minutes is None else minutes / (4 * len(SHARES)),
    }
    return config.model_copy(update={"training": config.training.model_copy(update=short)})


def _best(
    pair: Pair, data: DataDirectory, records: Sequence[Record], config: Config, target: LoadedTarget
) -> LayersTrial:
    """What a trained draft gives with as many tokens to propose as pay; which ones is chosen with a real version."""
    assert pair.self_layers is not None
    wanted: list[DraftVocabulary] = []
    if config.models.draft_vocabulary != "all":
        wanted = vocabularies_to_try(pair, data, {record.id for record in records})
    best = max(try_drafts(pair, [None, *wanted], records, config, target), key=lambda trial: trial.forecast)
    return LayersTrial(
        pair.self_layers.layers,
        best.t_draft,
        best.acceptance,
        best.num_draft_tokens,
        best.forecast,
        size_of(best, pair.width),
    )
