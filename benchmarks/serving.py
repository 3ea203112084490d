"""Our server beside decoding in process and beside mlx-lm's server: python benchmarks/serving.py

Both servers have the embedded pair with a trained draft, float32 weights, the same BLAS and allocator, and are asked by
the same clients in turns: one stream at each draft length, and eight clients at once. Ours alone: how far the waits for
a first token lie apart, thousands of requests of mixed kind, and, of another pair (--chat), a second turn of a chat.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import results
import serving_world as world
import speed_world
from mlx_lm.generate import stream_generate
from mlx_lm.tokenizer_utils import load as load_tokenizer
from results import Figure

from draftloop import reference
from draftloop.cli.tables import print_table
from draftloop.config import Models
from draftloop.data.records import Sampler
from draftloop.decoding.decoder import Decoding, Settings
from draftloop.decoding.draft_length import AdaptiveDraftLength
from draftloop.evaluation.latency import measure_latency
from draftloop.models import adapter as lora
from draftloop.models.pair import Pair, load_pair
from draftloop.prompts.files import read_prompts

LENGTHS, CLIENTS, TURNS = (1, 2, 3, 4), 8, 5
OURS, INSIDE = "ours", "in process"
TOKENS, PROMPTS, REQUESTS, CHAT_TOKENS = 96, 8, 5_000, 400


def main() -> None:
    parser = speed_world.options(__doc__)
    parser.add_argument(
        "--chat", type=Path, nargs=2, metavar=("TARGET", "DRAFT"), help="directories of a pair with a chat template"
    )
    given = parser.parse_args()
    turns, count, requests = (1, 4, 50) if given.quick else (TURNS, PROMPTS, REQUESTS)
    prompts = [
        prompt.text
        for domain in reference.DOMAINS
        for prompt in read_prompts(reference.prompts_file(domain, "benchmark"))[: count // 2]
    ]
    with tempfile.TemporaryDirectory(prefix="draftloop-serving-") as name:
        folder = Path(name)
        target, base = (world.float32_copy(path, folder / path.name) for path in (reference.TARGET, reference.DRAFT))
        trained = speed_world.trained_pair(given.adapter, given.quick)
        draft = world.with_its_adapter(trained, base, folder / "trained-draft")
        pair = load_pair(Models(target=str(target), draft=str(draft)))
        rows = [*one_stream(pair, target, draft, folder, prompts, turns)]
        rows += several(pair, target, draft, folder, prompts, turns)
        rows += many(target, draft, folder, prompts, requests)
        if given.chat:
            chat_target, chat_draft = given.chat
            rows += second_turn(chat_target, chat_draft, folder, turns)
    print_table(["what", "value", "unit"], [[row["what"], row["value"], row["unit"]] for row in rows])
    value = {row["what"]: float(row["value"]) for row in rows}
    bounds: dict[str, dict[str, Any]] = {
        "HTTP over in process, T 0.8": {"at_least": 0.93},
        "HTTP over in process, T 0": {},
        "over mlx_lm.server, T 0.8": {"at_least": 1.3},
        "over mlx_lm.server, T 0": {},
        "8 clients over mlx_lm.server": {"at_least": 0.8},
        "longest wait over the mean": {"at_most": 3},
        "greedy answers that differ": {"at_most": 0},
        "requests that failed": {"at_most": 0},
        "memory growth": {"at_most": 30},
        **({"second turn over the first": {"at_most": 0.4}} if given.chat else {}),
    }
    units = {row["what"]: row["unit"] for row in rows}
    figures = [Figure(what, value[what], units[what], **bound) for what, bound in bounds.items()]
    if not given.quick:
        conditions = {
            "adapter": speed_world.described(given.adapter),
            "tokens": TOKENS,
            "prompts": f"{count // 2} of each domain",
            "turns": turns,
            "lengths": LENGTHS,
            "chat": given.chat and [path.name for path in given.chat],
        }
        results.write("serving", conditions, figures, rows=rows)


def one_stream(
    pair: Pair, target: Path, draft: Path, folder: Path, prompts: Sequence[str], turns: int
) -> list[dict[str, Any]]:
    """Tokens a second of one client: ours, decoding in process, and mlx-lm's server at every draft length."""
    rows = []
    profiles = {greedy: measure_latency(pair, 8, greedy=greedy) for greedy in (True, False)}
    for temperature in (0.8, 0.0):
        fields = {"max_tokens": TOKENS, "temperature": temperature}
        with ExitStack() as servers:
            port = world.free_port()
            mine = world.ours(target, draft, folder / f"data-{temperature}", port, "--capture", "off")
            urls: dict[int | str, str] = {OURS: servers.enter_context(world.server(mine, port))}
            for k in LENGTHS:
                port = world.free_port()
                more = ["--draft-model", str(draft), "--num-draft-tokens", str(k)]
                urls[k] = servers.enter_context(world.server(world.theirs(target, port, *more), port))
            speeds: dict[int | str, list[float]] = {name: [] for name in (INSIDE, *urls)}
            for _ in range(turns + 1):  # all of them in turn, so that whatever else runs here slows all alike
                speeds[INSIDE].append(_in_process(pair, profiles[temperature == 0], prompts, temperature))
                for name, url in urls.items():
                    answers = world.one_after_the_other(url, prompts, **fields)
                    speeds[name].append(world.tokens_per_second(answers))
        kept = {name: found[1:] for name, found in speeds.items()}  # the first turn warmed them up
        best = max(LENGTHS, key=lambda k: statistics.median(kept[k]))
        label = f"T {temperature:g}"
        rows += [
            _row(f"one stream, {label}", statistics.median(kept[OURS]), "tokens/s"),
            _row(f"in process, {label}", statistics.median(kept[INSIDE]), "tokens/s"),
            _row(f"mlx_lm.server at its best K, {label}", statistics.median(kept[best]), "tokens/s"),
            _row(f"HTTP over in process, {label}", _ratio(kept[OURS], kept[INSIDE]), "x"),
            _row(f"over mlx_lm.server, {label}", _ratio(kept[OURS], kept[best]), "x"),
        ]
    return rows


def _ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    """The median over turns."""
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def _in_process(pair: Pair, profile: Any, prompts: Sequence[str], temperature: float) -> float:
    """Tokens a second of the decoder as the server uses it."""
    tokens, began = 0, time.perf_counter()
    with lora.merged(pair.draft):
        for number, prompt in enumerate(prompts):
            rule = "greedy" if temperature == 0 else "rejection"
            settings = Settings(Sampler(temperature, 1.0, 0.0, 0, number), rule, 8, TOKENS, keep_bonus_draws=False)  # type: ignore[arg-type]
            decoding = Decoding(pair, pair.tokenizer.encode(prompt), settings, AdaptiveDraftLength(profile, 8))
            tokens += sum(len(round_.tokens) for round_ in decoding)
    return tokens / (time.perf_counter() - began)


def several(
    pair: Pair, target: Path, draft: Path, folder: Path, prompts: Sequence[str], turns: int
) -> list[dict[str, Any]]:
    """Eight clients at once, of ours and of mlx-lm's batches without a draft; and whether answers are those alone."""
    asked = [prompts[i % len(prompts)] for i in range(4 * CLIENTS)]
    fields = {"max_tokens": TOKENS, "temperature": 0.8}
    speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
    waits, port, other = [], world.free_port(), world.free_port()
    with (
        world.server(world.ours(target, draft, folder / "data-8", port, "--capture", "off"), port) as url,
        world.server(world.theirs(target, other), other) as their_url,
    ):
        for turn in range(turns + 1):
            for name, where in (("ours", url), ("theirs", their_url)):
                found, seconds = world.at_once(where, asked, CLIENTS, **fields)
                if turn:
                    speeds[name].append(sum(one.tokens for one in found) / seconds)
                    if name == "ours":
                        waits.append(world.spread_of_waiting(found[:CLIENTS]))
        greedy, _ = world.at_once(url, prompts, CLIENTS, max_tokens=TOKENS, temperature=0)
    differ = sum(not _is_plain(pair, prompt, one.text) for prompt, one in zip(prompts, greedy, strict=True))
    ratio = _ratio(speeds["ours"], speeds["theirs"])
    return [
        _row("8 clients", statistics.median(speeds["ours"]), "tokens/s"),
        _row("8 clients of mlx_lm.server", statistics.median(speeds["theirs"]), "tokens/s"),
        _row("8 clients over mlx_lm.server", ratio, "x"),
        _row("longest wait over the mean", statistics.median(waits), "x"),
        _row("greedy answers that differ", differ, ""),
    ]


def _is_plain(pair: Pair, prompt: str, answer: str) -> bool:
    """Whether an answer is plain mlx-lm's."""
    whole = "".join(one.text for one in stream_generate(pair.target, pair.tokenizer, prompt, max_tokens=TOKENS))
    return whole.strip() == answer.strip()


def many(target: Path, draft: Path, folder: Path, prompts: Sequence[str], requests: int) -> list[dict[str, Any]]:
    """Requests of mixed kind: how many fail, and how much the server grows after the first fifth of them."""
    rng, failed, sizes = random.Random(0), 0, []
    port = world.free_port()
    with world.server(world.ours(target, draft, folder / "data-many", port), port) as url, httpx.Client() as client:
        for number in range(requests):
            prompt = rng.choice(prompts)[: rng.randrange(5, 200)]
            fields: dict[str, Any] = {"max_tokens": rng.randrange(1, 12), "temperature": rng.choice([0, 0.8])}
            if rng.random() < 0.2:
                fields["stop"] = ["\n"]
            if rng.random() < 0.1:
                fields["presence_penalty"] = 1.0
            try:
                world.ask(client, url, prompt, **fields)
            except (httpx.HTTPError, KeyError):
                failed += 1
            if number in (requests // 5, requests - 1):
                sizes.append(world.resident_megabytes(port))
    return [_row("requests that failed", failed, ""), _row("memory growth", sizes[-1] - sizes[0], "MB")]


def second_turn(target: Path, draft: Path, folder: Path, turns: int) -> list[dict[str, Any]]:
    """How long the first token of a chat's second turn takes, over that of its first turn of 400 tokens."""
    tokenizer, port, ratios = load_tokenizer(target), world.free_port(), []
    command = world.ours(target, draft, folder / "data-chat", port, "--capture", "off")
    with world.server(command, port) as url, httpx.Client() as client:
        for number in range(turns + 1):
            text = ""
            while len(tokenizer.encode(text)) < CHAT_TOKENS:
                text += f"Note {number}.{len(text)}: the harbour was built before the railway, and nobody knows why. "
            messages = [{"role": "user", "content": f"{text}What was built first?"}]
            first = world.ask_chat(client, url, messages, max_tokens=TOKENS, temperature=0)
            messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And why?"}]
            second = world.ask_chat(client, url, messages, max_tokens=TOKENS, temperature=0)
            if number:
                ratios.append(second.first / first.first)
    return [_row("second turn over the first", statistics.median(ratios), "x")]


def _row(what: str, value: float, unit: str) -> dict[str, Any]:
    return {"what": what, "value": round(value, 4), "unit": unit}


if __name__ == "__main__":
    main()
