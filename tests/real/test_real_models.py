"""On models that people use: a target drafts for itself, outputs are its own, chats end as they should, it learns."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import benchmark_scripts
import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_tokenizer
from near_ties import parts_at_a_near_tie
from tiny import sampler

from benchmarks.real_prompts import varied_instructions
from draftloop.config import Lora, Models
from draftloop.decoding.decoder import Decoding, Settings
from draftloop.models import adapter as lora
from draftloop.models.pair import Pair, load_pair
from scripts.real_models import SOURCES, real_model

pytestmark = [pytest.mark.real, pytest.mark.timeout(3_600)]

PROMPTS = ("The three largest cities of France are", "def read_lines(path):\n    ", "Once upon a time there was a")
LAYERS = {"smollm2": 4, "gemma3": 6}
TOKENS = 40
GREEDY = Settings(sampler(0.0), "greedy", num_draft_tokens=3, max_tokens=TOKENS)


@pytest.fixture(scope="module", params=sorted(SOURCES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return real_model("smollm2")


def with_a_lively_draft(pair: Pair) -> Pair:
    """A bare draft of first layers agrees with hardly anything: noise on its adapter changes nothing in the output."""
    mx.random.seed(0)
    lora.attach_fresh(pair.draft, lora.shape_for(pair.draft, Lora(rank=8)), 0)
    noise = {name: 0.01 * mx.random.normal(leaf.shape) for name, leaf in lora.adapter_parameters(pair.draft).items()}
    lora.load_parameters(pair.draft, noise)
    return replace(pair, stop_tokens=frozenset())


def differences(pair: Pair, bound: float) -> int:
    """Of how many prompts the greedy output parts from plain mlx-lm's, each at a near tie."""
    parted = 0
    for text in PROMPTS:
        prompt = pair.tokenizer.encode(text)
        plain = [int(token) for token, _ in islice(generate_step(mx.array(prompt), pair.target), TOKENS)]
        with pair.merged():
            rounds = list(
                Decoding(pair, prompt, Settings(sampler(0.0), "greedy", num_draft_tokens=3, max_tokens=TOKENS))
            )
        ours = [token for round_ in rounds for token in round_.tokens]
        parted += parts_at_a_near_tie(pair.target, prompt, ours, plain, bound)
    return parted


def test_greedy_outputs_are_the_target_s_own(name: str) -> None:
    pair = with_a_lively_draft(load_pair(Models(target=str(real_model(name)), draft=f"self:{LAYERS[name]}")))
    assert differences(pair, 1e-3) == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_ones_too(name: str, bits: int, tmp_path: Path) -> None:
    mlx_lm.convert(str(real_model(name)), str(tmp_path / "quantized"), quantize=True, q_bits=bits)
    pair = load_pair(Models(target=str(tmp_path / "quantized"), draft=f"self:{LAYERS[name]}"))
    assert any("scales" in module for module in pair.draft.modules())
    assert differences(with_a_lively_draft(pair), 5e-2) <= 1


def test_the_draft_holds_little_of_its_own(name: str) -> None:
    pair = load_pair(Models(target=str(real_model(name)), draft=f"self:{LAYERS[name]}"))
    own = {id(leaf) for _, leaf in tree_flatten(pair.target.parameters())}
    assert all(id(leaf) in own for _, leaf in tree_flatten(pair.draft.parameters()))
    lora.attach_fresh(pair.draft, lora.shape_for(pair.draft, Lora()), 0)
    whole = sum(leaf.nbytes for _, leaf in tree_flatten(pair.target.parameters()))
    with pair.merged():
        more = sum(leaf.nbytes for _, leaf in tree_flatten(pair.draft.parameters()) if id(leaf) not in own)
    assert more <= 0.15 * whole


@dataclass(frozen=True)
class Home:
    """A folder with a configuration of SmolLM2 that drafts for itself; commands run in processes of their own."""

    folder: Path

    def call(self, *command: str) -> dict[str, Any]:
        """What a command prints as JSON."""
        place = ("--config", str(self.folder / "config.yaml"), "--data-dir", str(self.folder / "data"))
        done = subprocess.run(
            [sys.executable, "-m", "draftloop", *place, *command, "--json"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def prompts(self, lines: list[dict[str, Any]]) -> tuple[str, str]:
        """The option for a file of them."""
        path = self.folder / "prompts.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return "--prompts-file", str(path)


@pytest.fixture
def home(smollm2: Path, tmp_path: Path) -> Home:
    config = {
        "models": {"target": str(smollm2), "draft": "self:4"},
        "speculative": {"max_tokens": 32, "temperature": 0.7, "top_p": 0.95},
        "training": {"epochs": 3, "answers": 0, "proposals": 0, "learning_rate": 0.002},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    return Home(tmp_path)


def test_a_chat_ends_where_the_model_ends_it(home: Home) -> None:
    turns = [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "And of Italy?"},
    ]
    home.call("collect-data", *home.prompts([{"messages": turns}]), "--temp", "0", "--max-tokens", "64")
    written = json.loads((home.folder / "data/failures/failures.jsonl").read_text())
    model, tokenizer = mlx_lm.load(str(real_model("smollm2")))
    model.set_dtype(mx.float32)  # as draftloop computes on a CPU: in 16 bits Rome is as likely as Italy
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
    answer = mlx_lm.generate(model, tokenizer, prompt, max_tokens=64)
    assert written["finish"] == "stop"
    assert tokenizer.decode(written["target_output"]) == answer + "<|im_end|>"


def test_tools_and_their_answers_are_chat_turns_too(home: Home) -> None:
    """The template has no place for tools, and the command says so; what it can write is asked for."""
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}
    turns = [
        {"role": "user", "content": "What is 2 and 3? Use the tool."},
        {"role": "assistant", "content": "I add them.", "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": "1"},
    ]
    parameters = {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}}
    tool = {"type": "function", "function": {"name": "add", "parameters": parameters}}
    found = home.call("collect-data", *home.prompts([{"messages": turns, "tools": [tool]}]), "--max-tokens", "8")
    assert found["generations"] == 1
    record = json.loads((home.folder / "data/failures/failures.jsonl").read_text())
    assert "<|im_start|>tool\n5<|im_end|>" in load_tokenizer(real_model("smollm2")).decode(record["prompt_tokens"])


@pytest.mark.parametrize("draft", ["self:4", "a model"])
def test_the_loop_learns(home: Home, draft: str, root: Path) -> None:
    """The draft is made of the target's layers, or a model of its own that was cut from it."""
    if draft == "a model":
        script = benchmark_scripts.load(root / "benchmarks" / "cut_draft.py")
        script.cut(real_model("smollm2"), 4, home.folder / "draft")
        config = json.loads((home.folder / "config.yaml").read_text())
        config["models"]["draft"] = str(home.folder / "draft")
        (home.folder / "config.yaml").write_text(json.dumps(config))
    home.call("collect-data", *home.prompts([{"prompt": text} for text in varied_instructions("collect", 64)]))
    trained = home.call("train")
    assert trained["val_acceptance_after"] > trained["val_acceptance_before"] + 0.02
    assert trained["peak_memory_gb"] <= 3
    chosen = home.call("status")["draft_vocabulary"]
    assert chosen["trials"][0]["size"] == 49_152
    measured = home.call("benchmark", "acceptance", "--adapter", "latest", "--limit", "8", "--num-draft-tokens", "2")
    bare, learned = (
        next(row for row in measured["results"] if (row["adapter"] == "none") is is_bare) for is_bare in (True, False)
    )
    assert learned["acceptance_per_position"] > bare["acceptance_per_position"]
