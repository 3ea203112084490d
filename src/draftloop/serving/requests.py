"""The body of a request becomes `Asked`, or an `ApiError` that names the field. Knows no model and no HTTP framework.

Whatever the bytes are, nothing else comes out: they are read as strict JSON, and what goes on to a chat template or a
record is walked only after its size and its depth are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import orjson
from pydantic import ValidationError

from ..config import SAMPLING, Rule, Speculative, one_of
from ..decoding.penalties import Penalties
from ..prompts.chat_messages import NoPrompt, chat_message
from ..prompts.prompt import Prompt
from ..store.json_values import why_not_kept
from .api_error import ApiError
from .asked import Asked, SamplingRule
from .request_bodies import ChatBody, CompletionBody, TextBody

_Body = TypeVar("_Body", bound=CompletionBody)
_SAMPLER = ("temperature", "top_p", "top_k", "min_p")  # with the names and ranges of the configuration


@dataclass(frozen=True)
class RequestLimits:
    """How much a request may bring, before anything is tokenized.

    Attributes:
        max_body_bytes: of the JSON.
        max_prompt_chars: of a text, or of messages, tools and template arguments as JSON; of token ids their number.
        max_tokens: that it may ask for.
        max_messages: of a chat.
        max_tools: that may be called.
        max_stop: stop strings.
        max_stop_chars: of each of them.
    """

    max_body_bytes: int = 10_000_000
    max_prompt_chars: int = 2_000_000
    max_tokens: int = 131_072
    max_messages: int = 4_096
    max_tools: int = 128
    max_stop: int = 4
    max_stop_chars: int = 256


def parse_chat(body: bytes, defaults: Speculative, limits: RequestLimits) -> Asked:
    """What a request for chat completions asks for.

    Args:
        body: as it came.
        defaults: of what it leaves out.
        limits: of this server.

    Raises:
        ApiError: 413 or 400, naming the field.
    """
    given = _json_object(body, limits)
    for name, most in (("messages", limits.max_messages), ("tools", limits.max_tools)):
        _check_most(name, len(given[name]) if isinstance(given.get(name), list) else 0, most)
    fields = _validated(ChatBody, given)
    tools, choice = fields.tools or [], fields.tool_choice
    names = [tool.function.name for tool in tools]
    if choice not in ("auto", "none") and not (tools if choice == "required" else choice in names):
        raise _invalid("tool_choice", f"{choice!r} needs a tool to call, and tools has none of that name")
    if fields.top_logprobs and not fields.logprobs:
        raise _invalid("top_logprobs", "it is reported only where logprobs is true")
    arguments = {**defaults.chat_template_args, **(fields.chat_template_kwargs or {})}
    in_prompt = {name: given.get(name) for name in ("messages", "tools", "chat_template_kwargs")}
    _check_can_be_kept(in_prompt, limits)
    offered = [] if choice == "none" else [tool for tool in given.get("tools") or [] if _is_offered(tool, choice)]
    messages = _messages(given["messages"])
    text = "\n".join(message["content"] for message in messages)
    sampler = _sampler(fields, defaults, {"chat_template_args": arguments})
    return Asked(
        kind="chat",
        prompt=Prompt(text, messages, tuple(offered) or None),
        max_tokens=_at_most(limits, "max_completion_tokens", fields.max_completion_tokens)
        or _at_most(limits, "max_tokens", fields.max_tokens),
        top_logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
        tool_choice=choice,
        template_args=sampler.chat_template_args,
        **_shared(fields, sampler, limits),
    )


def parse_text(body: bytes, defaults: Speculative, limits: RequestLimits) -> Asked:
    """What a request for completions asks for; args and errors as of `parse_chat`."""
    fields = _validated(TextBody, _json_object(body, limits))
    _check_most("prompt", len(fields.prompt), limits.max_prompt_chars, code="context_length_exceeded")
    if isinstance(fields.prompt, str):
        _check_can_be_kept({"prompt": fields.prompt}, limits)
    return Asked(
        kind="text",
        prompt=Prompt(fields.prompt) if isinstance(fields.prompt, str) else fields.prompt,
        max_tokens=_at_most(limits, "max_tokens", fields.max_tokens),
        top_logprobs=fields.logprobs,
        **_shared(fields, _sampler(fields, defaults, {}), limits),
    )


def _json_object(body: bytes, limits: RequestLimits) -> dict[str, Any]:
    if len(body) > limits.max_body_bytes:
        raise ApiError(413, f"the body has {len(body):,} bytes; expected at most {limits.max_body_bytes:,}")
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error.msg}, at character {error.pos:,}") from None
    if not isinstance(given, dict):
        raise ApiError(400, f"the body is {_shown(given)}; expected a JSON object")
    return given


def _validated(kind: type[_Body], given: Mapping[str, Any]) -> _Body:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _first_of(error) from None


def _sampler(fields: CompletionBody, defaults: Speculative, more: Mapping[str, Any]) -> Speculative:
    """The configuration with what the request gives in its place, checked by the configuration's own ranges."""
    own = {name: getattr(fields, name) for name in _SAMPLER if getattr(fields, name) is not None}
    try:
        return Speculative.model_validate({**defaults.model_dump(), **own, **more})
    except ValidationError as error:
        raise _first_of(error) from None


def _shared(fields: CompletionBody, sampler: Speculative, limits: RequestLimits) -> dict[str, Any]:
    """What requests of both kinds say in the same way."""
    _check_most("stop", len(fields.stop), limits.max_stop)
    _check_most("stop", max(map(len, fields.stop), default=0), limits.max_stop_chars)
    options, metadata = fields.stream_options, fields.metadata
    return {name: getattr(sampler, name) for name in _SAMPLER} | {
        "model": fields.model,
        "seed": None if fields.seed is None else fields.seed % 2**63,  # a negative one is a seed too
        "stop": fields.stop,
        "stream": fields.stream or False,
        "include_usage": options is not None and options.include_usage is True,
        "penalties": Penalties(
            1.0 if fields.repetition_penalty is None else fields.repetition_penalty,
            fields.presence_penalty or 0.0,
            fields.frequency_penalty or 0.0,
        ),
        "num_draft_tokens": fields.num_draft_tokens,
        "rule": _rule(fields.acceptance_rule, sampler.temperature),
        "source": None if metadata is None else metadata.source,
        "store": fields.store is not False,
    }


def _rule(rule: Rule | Literal["auto"] | None, temperature: float) -> SamplingRule | None:
    if rule is None or rule == "auto":
        return None
    if (rule == "greedy") != (temperature == 0):
        expected = one_of(("greedy",) if temperature == 0 else SAMPLING)
        message = f"{rule} does not fit temperature {temperature:g}; expected {expected}, or auto"
        raise _invalid("acceptance_rule", message)
    return None if rule == "greedy" else rule


def _messages(given: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    messages = []
    for place, message in enumerate(given):
        try:
            messages.append(chat_message(message))
        except NoPrompt as error:
            raise _invalid(f"messages[{place}].content", f"{error}; expected text, parts of text, or null") from None
    return tuple(messages)


def _is_offered(tool: Mapping[str, Any], choice: str) -> bool:
    return choice in ("auto", "required", tool["function"]["name"])


def _check_can_be_kept(values: Mapping[str, Any], limits: RequestLimits) -> None:
    """Raise where JSON text of the prompt is too long, too deep, or nothing that a record can hold."""
    size = 0
    for param, value in values.items():
        try:
            size += len(orjson.dumps(value).decode()) if value is not None else 0
        except TypeError:  # orjson's own, of what is very deep
            raise _invalid(param, "it is nested too deep") from None
        _check_most(param, size, limits.max_prompt_chars, code="context_length_exceeded")
        why = why_not_kept(value)
        if why:
            raise _invalid(param, why)


def _at_most(limits: RequestLimits, param: str, value: int | None) -> int | None:
    _check_most(param, value or 0, limits.max_tokens)
    return value


def _check_most(param: str, found: int, most: int, code: str | None = None) -> None:
    if found > most:
        raise _invalid(param, f"found {found:,}, expected at most {most:,}", code)


def _invalid(param: str, message: str, code: str | None = None) -> ApiError:
    return ApiError(400, f"{param}: {message}", param=param, code=code)


def _first_of(error: ValidationError) -> ApiError:
    """The first mistake that pydantic found."""
    first = error.errors(include_url=False, include_context=False)[0]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    param = param.replace("chat_template_args", "chat_template_kwargs")
    if first["type"] == "missing":
        return _invalid(param, "it is required", "missing_required_parameter")
    is_object = first["type"] == "model_type"  # of which pydantic's message names a class
    message = "expected an object" if is_object else first["msg"].removeprefix("Value error, ")
    return _invalid(param, f"{message[:1].lower()}{message[1:]}, found {_shown(first['input'])}")


def _shown(value: Any) -> str:
    """A value in a few words, however large or deep it is."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,}"
    return orjson.dumps(value[:40] if isinstance(value, str) else value).decode()
