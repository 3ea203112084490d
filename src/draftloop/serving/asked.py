"""What a request asks for, in our words, with every default filled in. Knows no JSON and no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..decoding.penalties import NO_PENALTIES, Penalties
from ..prompts.prompt import Prompt

SamplingRule = Literal["rejection", "block", "match"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One generation that a client wants.

    Attributes:
        kind: of the endpoint: chat completions or completions.
        model: as named by the request; None where it names none.
        prompt: text or messages with the tools that may be called, or token ids, not yet compared with a vocabulary.
        temperature, top_p, top_k, min_p: of the sampler, as `config.Speculative` has them; temperature 0 is greedy.
        seed: 0 .. 2**63 - 1; None where any will do.
        max_tokens: most tokens of the output; None leaves it to the server.
        stop: strings of which the first to occur ends the output, itself left out.
        top_logprobs: how many alternatives are reported per token, 0 for the token alone; None reports nothing.
        stream: chunks as they come, rather than one answer.
        include_usage: the stream ends with a chunk of counts.
        penalties: on logits.
        tool_choice: `auto`, `none`, `required`, or the name of a function of the tools. With `none` the prompt has no
            tools, with a name it has that one alone.
        template_args: what the chat template is given beside messages and tools, the configured ones included.
        num_draft_tokens: K, 0 for no speculation; None leaves it to the server.
        rule: the acceptance rule above temperature 0; None leaves it to the server.
        source: under which the record is filed; None leaves it to the server.
        store: whether anything of it may be kept on disk.
    """

    kind: Literal["chat", "text"]
    model: str | None = None
    prompt: Prompt | tuple[int, ...]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    stream: bool = False
    include_usage: bool = False
    penalties: Penalties = NO_PENALTIES
    tool_choice: str = "auto"
    template_args: Mapping[str, Any] = field(default_factory=dict)
    num_draft_tokens: int | None = None
    rule: SamplingRule | None = None
    source: str | None = None
    store: bool = True
