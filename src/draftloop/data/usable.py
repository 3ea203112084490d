"""Why a pair cannot be trained with a generation, or not be measured on it. Knows no file, split or mlx.

Only once the pair is loaded is it known whether both models have a logit for every token: where a draft with wider
logits collected before, the log holds tokens for which today's narrower model has none.
"""

from __future__ import annotations

from collections.abc import Mapping

from .records import PairId, Record

OTHER_PAIR = "another target or tokenizer"
NO_OUTPUT = "no output token"
NO_PROMPT = "no prompt token"
FOREIGN_ID = "token id beyond the logits that target and draft share"
CANCELLED = "cancelled by its client"
NEAR_TWO_SPLITS = "near a prompt of another split"


def is_of_pair(record: Record, pair: PairId) -> bool:
    """Whether a record was made by this target and tokenizer; its draft may have been another one."""
    return record.pair.target == pair.target and record.pair.tokenizer == pair.tokenizer


def why_unusable(record: Record, pair: PairId, width: int) -> str | None:
    """The reason for which a record is left out, in words to count by; None where it can be used.

    Args:
        record: any.
        pair: the one to measure or train.
        width: tokens 0 .. width - 1 have a logit in both models.
    """
    if not is_of_pair(record, pair):
        return OTHER_PAIR
    if not record.prompt_tokens:
        return NO_PROMPT
    if not record.target_output:
        return NO_OUTPUT
    if max(record.prompt_tokens + record.target_output + record.draft_output) >= width:
        return FOREIGN_ID
    return None


def why_not_measured(record: Record, pair: PairId, width: int) -> str | None:
    """As `why_unusable`, for whoever compares drafts: a cancelled generation trains, and nothing is measured on it.

    It ended when its client left, after so many rounds of the draft that was in use: where that draft was lucky, there
    is more of it. Scored on such outputs it takes 2% fewer rounds than an equally good draft.
    """
    return CANCELLED if record.finish == "cancelled" else why_unusable(record, pair, width)


def describe_counts(counts: Mapping[str, int]) -> str:
    """Counts by reason, for a person."""
    return ", ".join(f"{count} ({reason})" for reason, count in sorted(counts.items())) or "none"
