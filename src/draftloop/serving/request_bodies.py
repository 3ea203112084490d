"""The fields of OpenAI's requests and ours beside them, with types and ranges. Knows no default and no server's limit.

Types are strict: true is no number, and "1" is none. A field that is null counts as absent. Unknown fields are ignored;
known ones that would change the answer in a way that is not offered here are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

from ..config import LEAST_DIVISOR, Rule
from .sources import SOURCE_FORM, is_source


def _only(*values: Any) -> AfterValidator:
    """The values that change nothing; what else OpenAI takes is refused by the field's name."""

    def check(value: Any) -> Any:
        if value not in values:
            raise ValueError(f"only {orjson.dumps(values[0]).decode()} is supported here; leave it out")
        return value

    return AfterValidator(check)


def _text_or_list_of_texts(value: Any) -> tuple[str, ...]:
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("expected a text or a list of texts, none of them empty")
    return tuple(texts)


def _one_prompt(value: Any) -> str | tuple[int, ...]:
    """A text or token ids, alone or in a list of one prompt."""
    inner = value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list) else value
    if isinstance(inner, str):
        return inner
    if isinstance(inner, list) and inner and all(type(token) is int and 0 <= token < 2**31 for token in inner):
        return tuple(inner)
    if isinstance(inner, list) and len(inner) > 1 and all(isinstance(one, str | list) for one in inner):
        raise ValueError(f"{len(inner):,} prompts; one a request is supported here")
    raise ValueError("expected a text, or a list of token ids, at least one")


def _choice(value: Any) -> str:
    """`auto`, `none`, `required`, or the name of a function."""
    named = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = named.get("name") if isinstance(named, dict) else None
    if isinstance(name, str) and name:
        return name
    if value is None or value in ("auto", "none", "required"):
        return value or "auto"
    raise ValueError('expected "auto", "none", "required", or {"type": "function", "function": {"name": …}}')


def _template_arguments(value: dict[str, Any]) -> dict[str, Any]:
    if "chat_template" in value:
        raise ValueError("chat_template comes with the model and cannot be set")
    return value


def _text_or_object(value: Any) -> Any:
    if value is None or isinstance(value, str | dict):
        return value
    raise ValueError("expected an object, or a text of one")


def _source(value: str) -> str:
    if not is_source(value):
        raise ValueError(f"expected {SOURCE_FORM}")
    return value


_Strings = Annotated[tuple[str, ...], PlainValidator(_text_or_list_of_texts)]
_Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
_Positive = Annotated[int, Field(ge=1)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class _StreamOptions(_Body):
    include_usage: bool | None = None


class _Metadata(_Body):
    source: Annotated[str, AfterValidator(_source)] | None = None


class CompletionBody(_Body):
    """What both endpoints take."""

    model: str | None = None
    max_tokens: _Positive | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: _Strings = ()
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    repetition_penalty: Annotated[float, Field(ge=LEAST_DIVISOR, le=10.0)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    user: str | None = None
    metadata: _Metadata | None = None
    store: bool | None = None
    num_draft_tokens: Annotated[int, Field(ge=0, le=64)] | None = None
    acceptance_rule: Literal["auto", Rule] | None = None
    # Refused where they would change the answer.
    n: Annotated[int, _only(1)] | None = None
    logit_bias: Annotated[dict[str, Any], _only({})] | None = None


class TextBody(CompletionBody):
    """What completions take."""

    prompt: Annotated[str | tuple[int, ...], PlainValidator(_one_prompt)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    # Refused where they would change the answer.
    best_of: Annotated[int, _only(1)] | None = None
    echo: Annotated[bool, _only(False)] | None = None
    suffix: Annotated[str, _only("")] | None = None


class _CalledFunction(_Body):
    name: Annotated[str, Field(min_length=1)]
    arguments: Annotated[Any, PlainValidator(_text_or_object)] = None


class _Call(_Body):
    id: str | None = None
    type: Literal["function"] | None = None
    function: _CalledFunction


class _Message(_Body):
    """Its content is looked at where messages are converted."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[list[_Call], Field(max_length=128)] | None = None
    function_call: _CalledFunction | None = None


class _Function(_Body):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Tool(_Body):
    type: Literal["function"]
    function: _Function


class ChatBody(CompletionBody):
    """What chat completions take."""

    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: _Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[_Tool] | None = None
    tool_choice: Annotated[str, PlainValidator(_choice)] = "auto"
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_template_arguments)] | None = None
    # Refused where they would change the answer.
    response_format: Annotated[dict[str, Any], _only({"type": "text"})] | None = None
    functions: Annotated[list[Any], _only([])] | None = None
    function_call: Annotated[Any, _only("auto", "none", None)] = None
    audio: Annotated[Any, _only(None)] = None
    modalities: Annotated[list[Any], _only(["text"])] | None = None
