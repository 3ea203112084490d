"""The record: what one finished generation leaves behind, and its one sealed line. Knows no file, lock or model.

JSON has no lone surrogates (Python text read from a broken file has): such a prompt is written with U+FFFD in their
places, and `prompt_surrogates` lists [index, code point] of each, so that it comes back exactly.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, get_args

import orjson
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..config import Rule
from ..store.json_values import REPLACEMENT, SURROGATE
from ..store.sealed_lines import RecordError, check_schema, dump, end_of_sealed, field_names, members, seal, unseal
from .prompt_groups import opening, prompt_group

SCHEMA = 1

Split = Literal["train", "validation", "heldout"]
Finish = Literal["stop", "length"]

Count = Annotated[int, Field(strict=True, ge=0)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Text = Annotated[str, Field(strict=True)]
_CLOSED = ConfigDict(extra="forbid")

_LINE_START = re.compile(rb'\{"adapter":')  # the first of the sorted keys; inside a JSON string its quotes are escaped
_SPLIT = re.compile(rb',"split":"([a-z]+)"')
_SURROGATES = range(0xD800, 0xE000)
_LATER = ("messages", "tools", "chat_template_args")


@dataclass(frozen=True, slots=True)
class Sampler:
    """How one generation was sampled, in mlx-lm's names. `seed` is the seed of this very generation."""

    temperature: Number
    top_p: Number
    min_p: Number
    top_k: Count
    seed: Count
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A rejected draft token and the token emitted in its place.

    Of both: log p (target model) and log q (draft model), None where the sampler's transforms leave no mass.
    """

    position: Count
    draft_token: Count
    target_token: Count
    draft_logp: Number | None
    draft_logq: Number | None
    target_logp: Number | None
    target_logq: Number | None
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True)
class PairId:
    """The fingerprints of a target, a draft and their one tokenizer."""

    target: Text
    draft: Text
    tokenizer: Text
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True)
class BlobRef:
    """Where the teacher's distributions of a record lie in the blob file, in bytes."""

    offset: Count
    length: Count
    checksum: Text
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True)
class RunConditions:
    """What a prompt is collected once under. `sampler.seed` does not count: `run_seed` stands for all of them."""

    pair: PairId
    adapter: str | None
    sampler: Sampler
    run_seed: int
    num_draft_tokens: int
    rule: Rule
    chat_template_args: dict[str, Any] | None = None

    def resume_key(self, prompt_tokens: Iterable[int]) -> str:
        """The key by which a resumed run finds that these prompt tokens were already collected."""
        s = self.sampler
        transforms = [float(s.temperature), float(s.top_p), float(s.min_p), s.top_k]
        run: list[Any] = [self.pair, self.adapter, transforms, self.run_seed, self.num_draft_tokens, self.rule]
        run += [self.chat_template_args] if self.chat_template_args else []  # nothing where there were none yet
        return hashlib.sha256(dump([list(prompt_tokens), run])).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One finished generation. All token ids; N tokens of output, the end of text counting as one.

    Attributes:
        id: 32 hex digits; a hash of what was generated, so that a repeated run has the same ids.
        prompt: its text; of a chat, of all messages.
        draft_output: N ids, what the draft proposed at each position given the emitted prefix.
        target_output: N ids, what was emitted.
        disagreements: the rejections of the verification, one for every round that rejected, in order.
        num_draft_tokens: the most proposals of a round (K).
        rounds: (drafted, accepted) each; a round that starts i tokens into the output drafts at most min(K, N - i).
        log_p, log_q: N values each, of the emitted tokens under target and draft; None where there is no mass.
        adapter: the draft's adapter version, None for the bare draft.
        time: unix seconds.
        run_seed: the seed of the run that collected it (`sampler.seed` is derived from it).
        teacher: the place of the teacher's distributions, None until there is one.
        messages: of a chat, as they were given, but for lone surrogates (U+FFFD in their places); None, and no member
            of the line, for plain text.
        tools: that the chat's assistant might call, likewise; None, and no member, where there were none.
        chat_template_args: what the chat template was given beside them; None, and no member, where it was nothing.
    """

    id: Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{32}$")]
    prompt: Text
    prompt_tokens: tuple[Count, ...]
    draft_output: tuple[Count, ...]
    target_output: tuple[Count, ...]
    disagreements: tuple[Disagreement, ...]
    sampler: Sampler
    rule: Rule
    num_draft_tokens: Count
    rounds: tuple[tuple[Count, Count], ...]
    log_p: tuple[Number | None, ...]
    log_q: tuple[Number | None, ...]
    finish: Finish
    pair: PairId
    adapter: Text | None
    split: Split
    source: Text
    time: Number
    run_seed: Count
    teacher: BlobRef | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    chat_template_args: dict[str, Any] | None = None
    schema: Literal[1] = 1
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    @property
    def is_failure(self) -> bool:
        """Whether at least one draft token was rejected."""
        return bool(self.disagreements)

    @property
    def drafted(self) -> int:
        """Proposals over all rounds."""
        return sum(drafted for drafted, _ in self.rounds)

    @property
    def accepted(self) -> int:
        """Accepted proposals over all rounds."""
        return sum(accepted for _, accepted in self.rounds)

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / drafted, from 0.0 to 1.0; None when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def opening(self) -> str:
        """The text that decides the prompt group: of a chat, the user turn that the conversation began with."""
        return opening(self.prompt, self.messages)

    @property
    def group(self) -> str:
        """The prompt group by itself; what is near to it is joined with it by the log's `groups`."""
        return prompt_group(self.opening)

    @property
    def conditions(self) -> RunConditions:
        """What it was collected under."""
        return RunConditions(
            pair=self.pair,
            adapter=self.adapter,
            sampler=self.sampler,
            run_seed=self.run_seed,
            num_draft_tokens=self.num_draft_tokens,
            rule=self.rule,
            chat_template_args=self.chat_template_args,
        )


_RECORD = TypeAdapter(Record)

GroupOf = Callable[[Record], str]
"""The unit that a record counts for; `groups().group_of` of the log that holds it, which joins near-duplicates."""


def own_group(record: Record) -> str:
    """The group of a record of which no log is known."""
    return record.group


def resume_key(record: Record) -> str:
    """The key under which `record` was collected; equal to `RunConditions.resume_key` of its run."""
    return record.conditions.resume_key(record.prompt_tokens)


def to_line(record: Record) -> bytes:
    """The line of `record`, newline included.

    Raises:
        RecordError: it would not read back as this very record (NaN, a wrong length, a foreign type).
    """
    try:
        body = dump(_to_json(record))
    except TypeError as error:  # orjson: an integer past 64 bits, a lone surrogate outside the prompt, a foreign type
        raise RecordError(f"it cannot be written as JSON: {error}") from error
    back = from_body(body)
    if back != record:
        names = ", ".join(name for name in field_names(Record) if getattr(back, name) != getattr(record, name))
        raise RecordError(f"{names}: holds what JSON cannot keep (NaN, infinity, a list for a tuple)")
    return seal(body)


def from_line(line: bytes) -> Record:
    """The record of a line, checked from its checksum to the last length.

    Raises:
        RecordError: the line is damaged or contradicts itself.
        StoreError: it was written by a newer draftloop.
    """
    return from_body(unseal(line))


def from_body(body: bytes) -> Record:
    """The record of an unsealed JSON object. Raises as `from_line` does."""
    values = _parse(body)
    surrogates = values.pop("prompt_surrogates", None)
    try:
        record = _RECORD.validate_python(values)
        if surrogates:
            record = replace(record, prompt=_with_surrogates(record.prompt, surrogates))
    except (ValidationError, TypeError, ValueError, IndexError) as error:
        raise RecordError(_first_problem(error)) from None
    _check_lengths(record)
    _check_rounds(record)
    _check_disagreements(record)
    return record


def split_of(body: bytes) -> str:
    """The split named in an unsealed JSON object, without reading anything else of it."""
    if b'"tools":' in body:  # they come behind the split, and may have such a key too
        split = _parse(body).get("split")
        return split if isinstance(split, str) else ""
    found = _SPLIT.match(body, body.rfind(b',"split":"'))  # the last one: a message may have such a key too
    return found[1].decode() if found else ""


def opening_and_split_of(body: bytes) -> tuple[str, Split]:
    """`Record.opening` and the split of an unsealed JSON object, without its record. Raises as `from_line` does."""
    values = _parse(body)
    prompt: Any = values.get("prompt")
    split: Any = values.get("split")
    if not isinstance(prompt, str) or split not in get_args(Split):
        raise RecordError(f"prompt and split: found {str(prompt)[:80]!r} and {split!r}, expected a text and a split")
    messages: Any = values.get("messages")
    chat = isinstance(messages, list) and all(isinstance(message, dict) for message in messages)
    return opening(prompt, messages if chat else None), split


def whole_records(data: bytes) -> Iterator[tuple[int, int]]:
    """Where whole records lie in damaged bytes, as (start, end): a newline that was lost joins two good ones."""
    done = 0
    for start in (found.start() for found in _LINE_START.finditer(data)):
        end = end_of_sealed(data, start) if start >= done else None  # a message may hold such a start too
        if end is not None:
            done = end
            yield start, done


def _to_json(record: Record) -> dict[str, Any]:
    values = members(record)
    for name in _LATER:
        if values[name] is None:
            del values[name]  # as lines were before there was such a thing
    values["prompt"] = SURROGATE.sub(REPLACEMENT, record.prompt)
    values["prompt_surrogates"] = [(found.start(), ord(found[0])) for found in SURROGATE.finditer(record.prompt)]
    return values


def _with_surrogates(prompt: str, surrogates: list[tuple[int, int]]) -> str:
    characters = list(prompt)
    for index, code in surrogates:
        if code not in _SURROGATES:
            raise ValueError(f"found the code point {code}, expected a lone surrogate")
        characters[index] = chr(code)
    return "".join(characters)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RecordError(f"it is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise RecordError("it is no JSON object")
    check_schema(values.get("schema"), SCHEMA, "record")
    return values


def _first_problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"prompt_surrogates: {error}"
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: found {str(first['input'])[:80]!r}; {first['msg']}"


def _check_lengths(record: Record) -> None:
    length = len(record.target_output)
    for name in ("draft_output", "log_p", "log_q"):
        found = len(getattr(record, name))
        if found != length:
            raise RecordError(f"{name} has {found} entries, expected the {length} of target_output")


def _check_rounds(record: Record) -> None:
    start, length = 0, len(record.target_output)
    for drafted, accepted in record.rounds:
        most = min(record.num_draft_tokens, length - start)
        if start >= length or not accepted <= drafted <= most:
            raise RecordError(
                f"rounds: the one at position {start} of {length} accepted {accepted} of {drafted} proposals, "
                f"expected accepted <= drafted <= {max(most, 0)}"
            )
        start += accepted + 1
    if start - length not in (0, 1):  # the last round may end in an accepted token, without one of the target's own
        raise RecordError(f"rounds: they cover {start} tokens, expected the {length} of target_output")


def _check_disagreements(record: Record) -> None:
    found = tuple((d.position, d.draft_token, d.target_token) for d in record.disagreements)
    expected = tuple((i, record.draft_output[i], record.target_output[i]) for i in _rejections(record))
    if found != expected:
        raise RecordError(
            f"disagreements: found (position, draft token, target token) {str(found)[:200]}, "
            f"expected {str(expected)[:200]} by rounds, draft_output and target_output"
        )


def _rejections(record: Record) -> Iterator[int]:
    start = 0
    for drafted, accepted in record.rounds:
        if accepted < drafted:
            yield start + accepted
        start += accepted + 1
