"""Which tokens a draft may propose: as many as pay on this machine, the most used ones first.

    the log's split `train` -> how often each token was emitted -> the n most used, for a few n ┐
    a trained draft, generations of the split `validation` -------------------------------------┴-> the best forecast

The head is a large part of a small draft's step, and most of its tokens are hardly ever used. The choice is made once
for a draft, with the first version that was trained: what is proposed decides what is accepted, and versions are to be
compared by what they learned alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from ..config import Config
from ..data.records import Record
from ..data.usable import why_not_measured
from ..data_directory import DataDirectory
from ..evaluation.draft_trials import QUICKLY, DraftTrial, try_drafts
from ..evaluation.gate_target import LoadedTarget
from ..models.draft_vocabulary import DraftVocabulary, VocabularyTrial, most_used
from ..models.pair import Pair, bytes_of, with_kept_vocabulary
from ..models.short_head import place_of_head

SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)  # of the tokens, that are tried
LEAST_WIDTH = 8_192  # tokens; of fewer the head is a small part of a step
MOST_MEMORY = 1 / 16  # of the target's weights, that a copy of the head's rows may take
MEASURED, LEAST_MEASURED = 60, 8  # generations of the split `validation`


def settle_vocabulary(
    pair: Pair,
    data: DataDirectory,
    config: Config,
    say: Callable[[str], None] = lambda _: None,
    target: LoadedTarget | None = None,
) -> Pair:
    """The pair with the tokens that pay most, chosen now and kept; as it is, where there is nothing to choose.

    Args:
        pair: its draft carries a trained adapter; one whose tokens are chosen is returned as it is.
        data: tokens are counted in its split `train`; what is measured on is of the split `validation`.
        config: resolved.
        say: told what is being done, and what came of it.
        target: times; by default quickly.

    Raises:
        StoreError: the disk refused.
    """
    if config.models.draft_vocabulary == "all" or pair.vocabulary is not None:
        return pair
    measured = measured_generations(pair, data)
    wanted = vocabularies_to_try(pair, data, {record.id for record in measured})
    if not wanted or len(measured) < LEAST_MEASURED:
        return pair
    say(f"choosing the tokens that the draft may propose: {len(wanted)} numbers of them tried")
    trials = try_drafts(pair, [None, *wanted], measured, config, target or LoadedTarget(QUICKLY))
    chosen = choose_vocabulary(trials, wanted[0].head, pair.width)
    say(chosen.why)
    data.names.vocabularies.keep(pair.identity.draft, chosen)
    return with_kept_vocabulary(pair, config.models, data.names)


def vocabularies_to_try(pair: Pair, data: DataDirectory, measured: Collection[str]) -> list[DraftVocabulary]:
    """A few vocabularies, largest first; none where the head is a small part of a step, or cannot be shortened.

    Args:
        pair: its draft's head is looked at.
        data: whose split `train` says which tokens are used.
        measured: ids of records that they will be measured on, which are not counted.
    """
    if pair.width < LEAST_WIDTH:
        return []
    head = place_of_head(pair.draft)
    if head is None:
        return []
    module = dict(pair.draft.named_modules())[head]
    row = bytes_of(getattr(module, "linear", getattr(module, "embedding", module))) / pair.width
    sizes = [int(pair.width * share) for share in SHARES]
    sizes = [size for size in sizes if size * row <= MOST_MEMORY * bytes_of(pair.target)]
    if not sizes:
        return []
    counts: Counter[int] = Counter()
    for record in data.log.records(splits={"train"}):
        if record.id not in measured and why_not_measured(record, pair.identity, pair.width) is None:
            counts.update(record.target_output)
    return [DraftVocabulary(most_used(counts, pair.stop_tokens, size, pair.width), head, "a trial") for size in sizes]


def choose_vocabulary(trials: Sequence[DraftTrial], head: str, width: int) -> DraftVocabulary:
    """The one with the highest forecast, and the sentence that says so; between equals the first."""
    best = max(trials, key=lambda trial: trial.forecast)
    kept = tuple(
        VocabularyTrial(size_of(one, width), one.t_draft, one.acceptance, one.num_draft_tokens, one.forecast)
        for one in trials
    )
    gave = ", ".join(
        f"{one.size:,}: {one.acceptance:.3f} accepted per position, {one.forecast:.2f}x at K = {one.num_draft_tokens}"
        for one in kept
    )
    what = "all tokens" if best.vocabulary is None else f"the {len(best.vocabulary.tokens):,} most used tokens"
    why = f"{what} of {width:,} have the highest forecast ({gave})"
    return DraftVocabulary(() if best.vocabulary is None else best.vocabulary.tokens, head, why, kept)


def size_of(trial: DraftTrial, width: int) -> int:
    """How many tokens the draft could propose."""
    return width if trial.vocabulary is None else len(trial.vocabulary.tokens)


def measured_generations(pair: Pair, data: DataDirectory) -> list[Record]:
    """The first generations of the split `validation` that a pair can be measured on."""
    found: list[Record] = []
    for record in data.log.records(splits={"validation"}):
        if why_not_measured(record, pair.identity, pair.width) is None:
            found.append(record)
        if len(found) == MEASURED:
            break
    return found
