"""The configuration: one typed field per setting, with its default, its range and one line for the YAML and the docs.

`resolve` merges default, YAML file, environment (`DRAFTLOOP_TRAINING_LEARNING_RATE`) and flag; a later one wins.
Knows nothing of models, files of data, or terminals.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from .errors import ConfigError
from .runtime import blas
from .store.json_values import why_not_kept
from .store.yaml_strict import quoted, read_yaml_lines

ENV_PREFIX = "DRAFTLOOP_"
RESERVED_ENV = frozenset({"DRAFTLOOP_CONFIG", "DRAFTLOOP_DATA_DIR", blas.OFF})
DEFAULT_FILES = (Path("configs/config.yaml"), Path("configs/default.yaml"))

SELF = "self"  # models.draft, where the target drafts for itself

Rule = Literal["greedy", "rejection", "block", "match"]
SAMPLING: tuple[Rule, ...] = ("rejection", "block", "match")  # the acceptance rules above temperature 0; greedy is at 0
Matrices = Literal["layers", "all"]
Loss = Literal["ce", "kl", "tv", "nla", "lk"]
Teacher = Literal["live", "logged", "none"]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
NotNegative = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what MLX and NumPy both take
SOURCE_NAME = r"[A-Za-z0-9][A-Za-z0-9._@/+-]{0,63}"


def one_of(rules: Sequence[str]) -> str:
    """Their names for a message: `rejection, block or match`."""
    *others, last = rules
    return f"{', '.join(others)} or {last}" if others else last


def _auto_or(kind: Any, expected: str) -> PlainValidator:
    """`auto` or a `kind`; one message for both, where pydantic would give one for each."""
    adapter = TypeAdapter(kind)

    def check(value: object) -> object:
        try:
            return value if value == "auto" else adapter.validate_python(value)
        except ValidationError:
            raise ValueError(f"expected auto, or {expected}") from None

    return PlainValidator(check)


_WITH_THE_PROMPT = {"messages", "tools", "add_generation_prompt"}


def _template_args(value: object) -> object:
    """An object, or JSON text of one; arguments that come with a prompt cannot be set."""
    arguments = {} if value is None else value
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            arguments = json.loads(value)
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise ValueError('expected a JSON object, such as {"enable_thinking": false}')
    taken = sorted(arguments.keys() & _WITH_THE_PROMPT)
    if taken:
        raise ValueError(f"{taken[0]} comes with the prompt and cannot be set")
    why = why_not_kept(arguments)
    if why:
        raise ValueError(why)
    return arguments


def _texts(form: str, expected: str) -> BeforeValidator:
    """Texts that fit a regular expression, in small letters: a list, or one text with commas between them."""
    fits = re.compile(form).fullmatch

    def check(value: object) -> object:
        texts = [text.strip() for text in value.split(",")] if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and fits(text) for text in texts):
            raise ValueError(f"expected {expected}")
        return tuple(text.lower() for text in texts)

    return BeforeValidator(check)


_Gigabytes = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Memory = Annotated[float | Literal["auto"], _auto_or(_Gigabytes, "a number of GB above 0")]
_Rate = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
LearningRate = Annotated[float | Literal["auto"], _auto_or(_Rate, "a number above 0 and at most 1")]
Epochs = Annotated[int | Literal["auto"], _auto_or(Positive, "a whole number above 0")]
TemplateArgs = Annotated[dict[str, Any], PlainValidator(_template_args)]
HostNames = Annotated[
    tuple[str, ...], _texts(r"[\w.-]+|\[?[0-9A-Fa-f:.]+\]?", "names or addresses without a port, such as my-mac.local")
]
OriginNames = Annotated[
    tuple[str, ...],
    _texts(r"[A-Za-z][A-Za-z0-9+.-]*://[^/,\s*]+", "origins without a path, such as https://chat.example.org"),
]
_Seconds = Annotated[float, Field(gt=0.0, le=3600.0)]


class Section(BaseModel):
    """A part of the configuration: immutable, every key known, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(
                "true and false (YAML reads yes, no, on and off as them) mean nothing here"
            )  # or `epochs: yes` would be one epoch
        return value


def setting(default: Any, description: str, **bounds: Any) -> Any:
    """A field of a section: its default, one line of description, and bounds as pydantic names them."""
    return Field(default, description=description, **bounds)


class Models(Section):
    """The pair. A Hugging Face id, a local directory, or `embedded:target` and `embedded:draft`."""

    target: str = setting("embedded:target", "the large model whose output you want", min_length=1)
    draft: str = setting(
        "embedded:draft",
        "the small model that proposes tokens; self or self:N: the target's own first layers, by measurement or N",
        min_length=1,
    )
    draft_vocabulary: Literal["auto", "all"] = setting(
        "auto", "tokens that the draft may propose; auto: the most used ones, as many as pay, by measurement; all"
    )
    trust_remote_code: bool = setting(False, "let a model directory run Python code of its own")

    @field_validator("draft")
    @classmethod
    def _self_has_layers(cls, value: str) -> str:
        if value.startswith(SELF + ":") and not re.fullmatch(SELF + r":[1-9]\d{0,3}", value):
            raise ValueError("expected self, or self:N with the number of the target's layers, such as self:4")
        return value

    @property
    def of_training(self) -> Models:
        """Those that a training depends on: what the draft may propose is none of its business."""
        return self.model_copy(update={"draft_vocabulary": "auto"})

    @property
    def is_self(self) -> bool:
        """Whether the draft is made of the target's own first layers."""
        return self.draft == SELF or self.draft.startswith(SELF + ":")

    @property
    def self_layers(self) -> int | None:
        """Of how many layers such a draft is to be made; None where that is left to measurement."""
        return int(self.draft.removeprefix(SELF + ":")) if self.is_self and self.draft != SELF else None


LEAST_DIVISOR = 1e-6
"""Least temperature and least mass of a nucleus above 0: float32 takes what is much smaller for 0."""


class Speculative(Section):
    """How outputs are generated, in every command."""

    num_draft_tokens: int = setting(
        4, "draft tokens per round (K); generate chooses K itself where draft_length is auto", ge=1, le=64
    )
    draft_length: Literal["auto", "fixed"] = setting(
        "auto", "of generate; auto: in every round the K that maximises expected tokens/s; fixed: num_draft_tokens"
    )
    max_draft_tokens: int = setting(8, "largest K where draft_length is auto", ge=1, le=64)
    rule: Literal["auto", Rule] = setting(
        "auto", "acceptance rule; auto: greedy at temperature 0, else rejection (generate: the fastest measured)"
    )
    temperature: float = setting(0.8, "sampling temperature; 0 is greedy", ge=0.0, le=10.0)
    top_p: float = setting(1.0, "probability mass of the nucleus; 0 and 1 are off", ge=0.0, le=1.0)
    min_p: float = setting(0.0, "least probability, as a share of the most probable token's; 0 is off", ge=0.0, le=1.0)
    top_k: NotNegative = setting(0, "how many of the most probable tokens are kept; 0 is off")
    max_tokens: Positive = setting(128, "most tokens of a generation")
    seed: Seed = setting(0, "seed of everything random in generating")
    chat_template: bool = setting(True, "apply the tokenizer's chat template if it has one")
    chat_template_args: TemplateArgs = setting({}, 'more chat template arguments, as JSON: {"enable_thinking": false}')
    parse_special: bool = setting(False, "read control tokens that a prompt spells out as such, not as text")
    template_seconds: int = setting(10, "CPU seconds of a chat template per prompt, at most", ge=1, le=3600)
    prefill_step_size: Positive = setting(512, "prompt tokens per forward pass")

    @field_validator("temperature", "top_p")
    @classmethod
    def _is_off_or_a_number_for_float32(cls, value: float) -> float:
        if 0 < value < LEAST_DIVISOR:
            raise ValueError(f"expected 0 or at least {LEAST_DIVISOR:g}")
        return value


class Lora(Section):
    """The adapter's shape, in mlx-lm's own terms (`scale`, not alpha)."""

    rank: int = setting(64, "rank of each low-rank update", ge=1, le=1024)
    scale: float = setting(2.0, "factor on each low-rank update", gt=0.0, le=100.0)
    dropout: float = setting(0.0, "dropout on the adapter's input", ge=0.0, lt=1.0)
    num_layers: int = setting(-1, "last layers to adapt; -1 is all", ge=-1)
    matrices: Matrices = setting("all", "adapted weights; layers: those of the layers; all: embedding and head too")


class Training(Section):
    """How an adapter is trained from failures."""

    loss: Loss = setting(
        "lk", "loss; ce: target's tokens; kl, tv: its distribution; nla: negative log acceptance; lk: kl and tv"
    )
    learning_rate: LearningRate = setting("auto", "peak learning rate, at most 1; auto: measured in short trials")
    batch_size: Positive = setting(16, "most generations per micro-batch")
    batch_tokens: Positive = setting(1024, "most supervised tokens per micro-batch of several generations")
    gradient_accumulation_steps: Positive = setting(1, "micro-batches per optimizer step")
    epochs: Epochs = setting("auto", "passes over the failures; auto: fewer, the more failures there are")
    teacher: Teacher = setting(
        "live", "source of labels; live: the target; logged: what collect-data kept of it; none: its tokens alone"
    )
    answers: NotNegative = setting(3, "target samples: new outputs of a live teacher per failure")
    proposals: NotNegative = setting(4, "on-policy samples: outputs of the draft per failure, which the teacher labels")
    warmup_steps: NotNegative = setting(10, "optimizer steps up to the peak learning rate")
    weight_decay: float = setting(0.01, "AdamW's weight decay", ge=0.0, le=1.0)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", gt=0.0)
    max_loss: float = setting(50.0, "a batch above it is skipped; / T where T < 1", gt=0.0)
    max_skipped_batches: Positive = setting(5, "so many skipped batches in a row stop the run")
    replay_ratio: float = setting(0.2, "share of replay in the supervised tokens", ge=0.0, lt=1.0)
    max_source_share: float = setting(
        0.8, "most of the supervised tokens that one source may have beside others; 1 is no bound", gt=0.0, le=1.0
    )
    spot_check_share: float = setting(
        0.05, "share of a source's failures that a live teacher checks first, 8 at least; 0 checks none", ge=0.0, le=1.0
    )
    min_failure_cases: Positive = setting(50, "unused failures that make a retraining worth while")
    steps_per_report: Positive = setting(10, "optimizer steps between reports")
    steps_per_eval: Positive = setting(20, "optimizer steps between validations")
    val_batches: int = setting(-1, "micro-batches per validation; -1 is all", ge=-1)
    save_every: Positive = setting(50, "optimizer steps between checkpoints")
    patience: Positive = setting(8, "validations without an improvement before the run stops early")
    max_minutes: float | None = setting(None, "time limit, to which the schedule is fitted; none by default", gt=0.0)
    memory: Memory = setting("auto", "GB that MLX may hold; auto: 80% of what the device has")
    teacher_memory_mb: Positive = setting(
        2048, "MB for the target's full distributions; else their top-k tokens are used"
    )
    seed: Seed = setting(0, "seed of order, replay, new samples, dropout and the adapter's start")
    lora: Lora = Lora()


class Data(Section):
    """How much is kept of prompts and outputs."""

    max_prompt_length: Positive = setting(2048, "most tokens of a prompt; a longer one is skipped, never cut")
    max_output_length: Positive = setting(512, "most labels per generation; the rest is cut, and counted")
    replay_capacity: Positive = setting(500, "generations in the replay buffer")
    teacher_top_k: NotNegative = setting(32, "top-k tokens of the target kept per position; 0 keeps none")
    max_log_mb: NotNegative = setting(
        0, "MB that log, teacher probabilities and prompt index may take before they are compacted; 0 is no bound"
    )
    full_sync: bool = setting(False, "have every append survive a power loss too (slower)")


class Gate(Section):
    """What a candidate must prove, on held-out generations, to become the champion."""

    alpha: float = setting(0.05, "chance, per held-out epoch, of promoting a draft that is no better", gt=0.0, lt=0.5)
    max_attempts: Positive = setting(5, "scored attempts before a held-out epoch ends")
    min_heldout_prompts: int = setting(
        12, "with fewer the gate is inconclusive; sources with fewer are tested together as the rest", ge=2
    )
    max_heldout_generations: Positive = setting(400, "most that are scored; every source in proportion")
    max_drop_share: float = setting(
        0.04, "share of its acceptance length that no source, and not the rest, may lose", gt=0.0, lt=1.0
    )
    max_drop: float | None = setting(None, "deprecated: max_drop_share, but in acceptance length", gt=0.0)
    unit_alpha: float = setting(0.05, "level of the tests of each source and of the rest", gt=0.0, lt=0.5)
    material_drop_share: float = setting(
        0.01, "a proven loss above this share in one source refuses the candidate", gt=0.0, lt=1.0
    )
    looks: NotNegative = setting(5, "interim tests of a promoted draft, at 12, 24, 48 … new held-out prompts; 0 is off")
    rollback_alpha: float = setting(
        0.025,
        "chance, per promotion, of a wrong rollback by looks; as much again by checks on alarms",
        gt=0.0,
        lt=0.5,
    )
    rollback_drop_share: float = setting(
        0.02, "a proven loss above this share against the previous draft rolls back", gt=0.0, lt=1.0
    )
    max_draft_tokens: int = setting(8, "largest K of the speed forecast", ge=1, le=64)
    live_prompts: NotNegative = setting(4, "prompts decoded live to check the estimate; 0 is off")

    @model_validator(mode="after")
    def _can_be_conclusive(self) -> Self:
        if self.max_heldout_generations < self.min_heldout_prompts:
            raise ValueError(
                f"max_heldout_generations is {self.max_heldout_generations}: expected min_heldout_prompts "
                f"({self.min_heldout_prompts}) or more, or no candidate could ever be tested"
            )
        return self


class Drift(Section):
    """When a fall of acceptance counts as drift of the prompts (Page-Hinkley test, per source, on generations)."""

    false_alarm_rate: float = setting(0.01, "chance per source of a false alarm within the horizon", gt=0.0, lt=1.0)
    horizon: int = setting(200, "generations that the false alarm rate is about", ge=10)
    reference: int = setting(30, "generations that say what acceptance is usual", ge=10)
    tolerance: float = setting(0.01, "falls of the acceptance per position up to this are ignored", ge=0.0, le=1.0)
    min_failure_cases: Positive = setting(10, "unused failures that allow a retraining after an alarm")


class Retrain(Section):
    """What `retrain` may do unattended."""

    min_interval_minutes: float = setting(30.0, "minutes between two trainings", ge=0.0)
    max_minutes: float | None = setting(60.0, "limit of a training; null is no limit", gt=0.0)
    max_memory_gb: float | None = setting(
        None, "GB that MLX may hold while it trains: replaces auto of training.memory, else the smaller counts", gt=0.0
    )
    niceness: int = setting(10, "19 gives way to everything else", ge=0, le=19)
    keep_versions: int = setting(10, "newest versions whose weights are kept", ge=1)


class Serve(Section):
    """The server for OpenAI's clients."""

    host: str = setting("127.0.0.1", "address to listen on; any but loopback needs api_key_file", min_length=1)
    port: int = setting(8080, "port to listen on; 0 takes a free one", ge=0, le=65535)
    max_concurrent: int = setting(8, "requests that are decoded at a time", ge=1, le=256)
    queue: int = setting(64, "requests that may wait for their turn; the next one is refused with 429", ge=0, le=10000)
    api_key_file: str | None = setting(
        None, "file of API keys, mode 600, one `name: key` or key a line; null asks for none", min_length=1
    )
    allowed_hosts: HostNames = setting((), "names by which clients may call the server, besides its address")
    allowed_origins: OriginNames = setting((), "web pages that may call the server (CORS); [] allows none")
    learn: Literal["off", "idle"] = setting("off", "when to train: off, or idle, while nobody asks")
    idle_minutes: float = setting(5.0, "minutes without a request until a training begins or goes on", ge=0.0)
    admin: bool = setting(False, "let whoever may ask also choose the draft's version, for all")
    capture: bool = setting(True, "log generations, to learn from what was rejected")
    capture_rate: float = setting(1.0, "share of the generations that is logged", ge=0.0, le=1.0)
    source: str = setting(
        "serve", "source of prompts for which neither request nor API key names one", pattern=f"^{SOURCE_NAME}$"
    )
    max_sources: Positive = setting(100, "different sources that requests may name; all others are `other`")
    max_body_mb: int = setting(10, "MB of a request's body, at most", ge=1, le=1024)
    max_connections: int = setting(256, "open connections, at most; more are refused with 503", ge=8, le=65536)
    head_seconds: _Seconds = setting(10.0, "seconds within which the head of a request must be there")
    body_seconds: _Seconds = setting(30.0, "seconds within which the body of a request must be there")
    write_seconds: _Seconds = setting(30.0, "seconds after which a client that reads nothing is cut off")
    idle_seconds: int = setting(60, "seconds that an idle connection stays open", ge=1, le=3600)
    keep_alive_seconds: _Seconds = setting(15.0, "seconds between comment lines that keep a silent stream open")
    grace_seconds: int = setting(30, "seconds that requests have to finish after SIGTERM", ge=0, le=3600)
    prompt_cache_mb: NotNegative = setting(1024, "MB for the caches of earlier prompts; 0 keeps none")


class Config(Section):
    """All of it."""

    models: Models = Models()
    speculative: Speculative = Speculative()
    training: Training = Training()
    data: Data = Data()
    gate: Gate = Gate()
    drift: Drift = Drift()
    retrain: Retrain = Retrain()
    serve: Serve = Serve()


@dataclass(frozen=True)
class Resolved:
    """A configuration and where it came from.

    Attributes:
        config: the configuration.
        origins: where the value of each dotted key came from that is not at its default.
        file: the YAML that was read; None where there was none.
        file_keys: the dotted keys that it sets.
        given: the dotted keys that file, environment or flag set, if only to their default.
    """

    config: Config
    origins: Mapping[str, str]
    file: Path | None = None
    file_keys: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()


def deprecations(config: Config) -> list[str]:
    """A sentence for every key that is set, is still read, and should not be set any more."""
    gate = config.gate
    if gate.max_drop is None:
        return []
    said = f"gate.max_drop = {gate.max_drop:g} in acceptance length still counts, in place of gate.max_drop_share"
    why = "it will go, for a margin as small as 0.02 refuses most drafts that are better"
    return [f"{said}; {why}; remove it, or set the share ({gate.max_drop_share:g} of the acceptance length)"]


def leaves(section: type[Section] = Config, prefix: str = "") -> dict[str, FieldInfo]:
    """Every dotted key and its field, in the order of the classes."""
    fields: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            fields |= leaves(inner, f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = field
    return fields


def resolve(
    file: Path | None = None, flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> Resolved:
    """Merge default, file, environment and flags.

    Args:
        file: YAML to read; None takes the first of DEFAULT_FILES that exists, or no file at all.
        flags: dotted key to value; a value of None means that the flag was not given.
        environment: variables to look in; the process's own by default.

    Raises:
        ConfigError: an unknown key or a value out of range, naming the key and where it came from.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    # A file that is there and cannot be read, such as a dangling link, is a mistake: the next one is not taken for it.
    path = file or next((path for path in DEFAULT_FILES if path.is_symlink() or path.exists()), None)
    if path is not None:
        tree, lines = read_yaml_lines(path)
        for key, value in _flatten(tree):
            if key in values:
                raise ConfigError(f"{path}: {key} is set twice, dotted and under its section; keep one")
            values[key], origins[key] = value, f"file {path}, line {lines[key]}"
    file_keys = frozenset(values)
    for key, value in _from_environment(os.environ if environment is None else environment):
        values[key], origins[key] = value, f"environment {variable_of(key)}"
    for key, value in (flags or {}).items():
        if value is not None:
            values[key], origins[key] = value, "flag"
    config = _build(values, origins)
    values_of = {key: reduce(getattr, key.split("."), config) for key in origins}
    changed = {key: origins[key] for key, value in values_of.items() if value != leaves()[key].default}
    return Resolved(config, changed, path, file_keys, frozenset(values))


def variable_of(key: str) -> str:
    """The environment variable of a dotted key."""
    return ENV_PREFIX + key.upper().replace(".", "_")


def check_environment(environment: Mapping[str, str] | None = None) -> None:
    """Raise ConfigError for a variable that has no effect although somebody set it for one.

    Its name begins like draftloop's and is none of them, so it is mistyped; or it should name the configuration or the
    data directory and is empty, as a shell makes it from a variable that is not set.
    """
    variables = os.environ if environment is None else environment
    list(_from_environment(variables))
    empty = next((name for name in sorted(RESERVED_ENV) if variables.get(name) == ""), None)
    if empty is not None:
        raise ConfigError(f"environment variable {empty} is set and empty; expected a path, or unset it")


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    known = {variable_of(key): key for key in leaves()}
    for name, value in environment.items():
        if name in known:
            yield known[name], value
        elif name.startswith(ENV_PREFIX) and name not in RESERVED_ENV:
            (nearest,) = _closest(name, [*RESERVED_ENV, *known], 0.0)
            raise ConfigError(f"environment variable {name} is none of draftloop's; did you mean {nearest}?")


def _closest(name: str, known: list[str], cutoff: float) -> list[str]:
    """The name in `known` that is nearest to a mistyped one, if it is near enough: a cutoff of 0 takes any."""
    import difflib

    return difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    known = set(leaves())
    sections = {key.rpartition(".")[0] for key in known}
    for key, value in tree.items():
        if isinstance(value, dict) and value and f"{prefix}{key}" not in known:
            yield from _flatten(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in sections or value not in (None, {}):  # a section with nothing under it
            yield f"{prefix}{key}", value


def _build(values: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{origins[key]}: {key} is set, and so is {parent} as a plain value")
        node[last] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(dict(e), origins) for e in error.errors())) from None


def _explain(error: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    known = list(leaves())
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        key = next((k for k in origins if f"{k}.".startswith(f"{key}.")), key)  # pydantic names the outermost part
        same = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]  # right name, wrong section
        close = _closest(key, same or known, 0.0 if same else 0.5)
        remedy = f"did you mean {close[0]}?" if close else f"known ones: {', '.join(known)}"
        return f"{origins.get(key, 'configuration')}: unknown key {_short(key)}; {remedy}"
    message = error["msg"].removeprefix("Value error, ")
    shown = _short(repr(error["input"]))
    return f"{origins.get(key, 'configuration')}: {key} = {shown}: {message[0].lower()}{message[1:]}"


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"


_PLAIN = re.compile(r"(?!(null|true|false|yes|no|on|off|y|n)$)[A-Za-z_][\w./-]*", re.IGNORECASE | re.ASCII)


def to_yaml(config: Config | None = None) -> str:
    """The configuration as commented YAML: what `configs/default.yaml` holds."""
    return "\n".join(_yaml_lines(config or Config(), "")).lstrip("\n") + "\n"


def _yaml_lines(section: Section, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            if not indent:
                yield ""
            summary = (type(value).__doc__ or "").splitlines()[0].rstrip(".")
            yield f"{indent}{name}:  # {summary}"
            yield from _yaml_lines(value, f"{indent}  ")
        else:
            as_json = not isinstance(value, str)  # YAML reads all other JSON as it is
            text = json.dumps(value) if as_json else value if _PLAIN.fullmatch(value) else quoted(value)
            yield f"{indent}{name}: {text}  # {field.description}"
