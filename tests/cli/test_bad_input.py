"""Bad input of every command is one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FILES = {
    "p.txt": "the target\n",
    "p.csv": "x",
    "empty.txt": "\n\n",
    "broken.jsonl": '{"prompt": "a"}\n{"prompt"\n',
    "number.jsonl": '{"prompt": 5}\n',
    "unknown.yaml": "models: {targett: x}\n",
    "broken.yaml": "models: [\n",
    "file": "x",
}
PAIR = "<pair>"  # stands for the flags that name the small pair

BAD: list[tuple[list[str], str]] = [
    (["nothing"], "No such command 'nothing'"),
    (["--nothing", "status"], "No such option '--nothing'"),
    (["-c", "nowhere.yaml", "status"], "nowhere.yaml"),
    (["-c", ".", "status"], "is a directory"),
    (["-c", "unknown.yaml", "status"], "did you mean models.target?"),
    (["-c", "broken.yaml", "status"], "broken.yaml"),
    (["--data-dir", "file", "status"], "'file' is a file"),
    (["--data-dir", "file/x", "status"], "file is a file"),
    (["--data-dir", "file/x/y", "collect-data", "-p", "x"], "file is a file"),
    (["--log-level", "loud", "status"], "'loud' is not one of"),
    # collect-data
    (["collect-data"], "no prompts: give -p TEXT, --prompts-file FILE or --from LOG"),
    (["collect-data", "-p"], "requires an argument"),
    (["collect-data", "-p", "empty.txt"], "-p takes the text of a prompt, and empty.txt is a file: --prompts-file"),
    (["collect-data", "-p", "", PAIR], "none of 1 prompts was usable: prompt 1 (''): empty, no text"),
    (["collect-data", "-p", "1" * 10_000_000, PAIR], "too long, 10,000,000 characters"),
    (["collect-data", "--prompts-file", "nowhere.txt"], "nowhere.txt: cannot be read"),
    (["collect-data", "--prompts-file", "x" * 300 + ".txt"], "cannot be read"),
    (["collect-data", "--prompts-file", "."], "the ending (none) is unknown"),
    (["collect-data", "--prompts-file", "p.csv"], "the ending .csv is unknown"),
    (["collect-data", "--prompts-file", "empty.txt"], "holds no prompts"),
    (["collect-data", "--prompts-file", "broken.jsonl", "--strict"], "broken.jsonl, line 2: not a JSON object"),
    (["collect-data", "--prompts-file", "number.jsonl"], "none of 1 prompts is usable: number.jsonl, line 1: "),
    (["collect-data", "--from", ""], "found an empty path, expected a file"),
    (["collect-data", "--from", "nowhere.db"], "nowhere.db: cannot be read"),
    (["collect-data", "-p", "x", "--chat-template-args", "off"], "expected a JSON object, such as"),
    (["collect-data", "-p", "x", "--limit", "0"], "0 is not in the range x>=1"),
    (["collect-data", "-p", "x", "--source", "  "], "a name is expected"),
    (["collect-data", "-p", "x", "--source", "a\udcff"], "a name is expected"),
    (["collect-data", "-p", "x", "--source", "a\nb"], "a name is expected"),
    (["collect-data", "-p", "x", "--adapter", "v0009"], "No adapter v0009"),
    (["collect-data", "-p", "x", "--max-tokens", "400", "--num-draft-tokens", "64", "--model", "nowhere"], "nowhere"),
    # generate
    (["generate"], "Missing argument 'PROMPT'"),
    (["generate", "", PAIR], "the prompt cannot be used: empty, no text"),
    (["generate", "x", "y"], "unexpected extra argument"),
    (["generate", "1" * 3000, PAIR], "the prompt cannot be used: too long, 3,0"),
    (["generate", "x", "--max-tokens", "511", PAIR], "the pair holds 512"),
    (["generate", "x", "--temp", "-1"], "speculative.temperature = -1.0"),
    (["generate", "x", "--temp", "nan"], "speculative.temperature = nan"),
    (["generate", "x", "--temp", "warm"], "'warm' is not a valid float"),
    (["generate", "x", "--top-p", "1.5"], "speculative.top_p = 1.5"),
    (["generate", "x", "--min-p", "2"], "speculative.min_p = 2.0"),
    (["generate", "x", "--top-k", "-1"], "speculative.top_k = -1"),
    (["generate", "x", "--max-tokens", "0"], "speculative.max_tokens = 0"),
    (["generate", "x", "--num-draft-tokens", "0"], "speculative.num_draft_tokens = 0"),
    (["generate", "x", "--num-draft-tokens", "1000"], "speculative.num_draft_tokens = 1000"),
    (["generate", "x", "--seed", "-1"], "speculative.seed = -1"),
    (["generate", "x", "--seed", str(2**63)], "speculative.seed"),
    (["generate", "x", "--rule", "bloc"], "speculative.rule = 'bloc'"),
    (["generate", "x", "--rule", "greedy"], "rule greedy does not fit temperature 0.8"),
    (["generate", "x", "--temp", "0", "--rule", "match"], "rule match does not fit temperature 0"),
    (["generate", "x", "--model", "nowhere"], "model 'nowhere' is no directory here"),
    (["generate", "x", "--model", ""], "models.target"),
    (["generate", "x", "--draft-model", "file"], "file holds no config.json"),
    (["generate", "x", "--model", "~nobody-of-this-name/x"], "is no directory here"),
    (["generate", "x", "--model", "x" * 300], "is no directory here"),
    *[
        (["generate", "x", "--adapter-path", name, PAIR], reason)
        for name, reason in [
            ("", "cannot name an adapter"),
            ("../x", "neither none, champion, latest"),
            ("/nowhere", "neither none, champion, latest"),
            ("%2e%2e", "neither none, champion, latest"),
            ("..\\x", "neither none, champion, latest"),
            ("a\0b", "cannot name an adapter"),
            ("x" * 300, "cannot name an adapter"),
            ("latest", "No adapter latest"),
            ("v0001", "No adapter v0001"),
            ("file", "neither none, champion, latest"),
            (".", "is no adapter directory"),
        ]
    ],
    # benchmark acceptance
    (["benchmark", "velocity"], "No such command 'velocity'"),
    (["benchmark", "speed"], "give --prompts-file"),
    (["benchmark", "speed", "--num-draft-tokens", "0"], "every draft length lies between 1 and 64"),
    (["benchmark", "speed", "--rule", "greedy"], "rule greedy does not fit temperature 0.8"),
    (["benchmark", "acceptance"], "no generations in data/failures/failures.jsonl yet"),
    (["benchmark", "acceptance", "--temp", "0.5"], "sampler's flags need --prompts-file"),
    (["benchmark", "acceptance", "--prompts-file", "nowhere.txt"], "nowhere.txt: cannot be read"),
    *[
        (["benchmark", "acceptance", "--prompts-file", "p.txt", "--num-draft-tokens", lengths], reason)
        for lengths, reason in [
            ("0", "lies between 1 and 64"),
            ("1,65", "lies between 1 and 64"),
            ("", "whole numbers"),
            ("1,,2", "whole numbers"),
            ("a", "whole numbers"),
        ]
    ],
    (["benchmark", "acceptance", "--prompts-file", "p.txt", "--rule", "bloc"], "'bloc' is not one of"),
    (["benchmark", "acceptance", "--prompts-file", "p.txt", "--rule", "greedy"], "rule greedy does not fit"),
    (["benchmark", "acceptance", "--prompts-file", "p.txt", "--temp", "0", "--rule", "match"], "rule match does not"),
    (["benchmark", "acceptance", "--prompts-file", "p.txt", "--adapter", "v0003"], "No adapter v0003"),
    (["benchmark", "acceptance", "--prompts-file", "p.txt", "--limit", "0"], "not in the range"),
    # the rest
    (["status", "--nothing"], "No such option '--nothing'"),
    (["adapters", "list", "x"], "unexpected extra argument"),
    (["adapters", "promote"], "Missing argument 'VERSION'"),
    (["adapters", "promote", "v0001"], "No adapter v0001"),
    (["adapters", "promote", "latest"], "no version to promote yet"),
    (["adapters", "promote", "../x"], "No adapter ../x"),
    (["adapters", "promote", "/"], "No adapter /"),
    (["doctor", "x"], "unexpected extra argument"),
]
NAMES = [" ".join(arguments)[:60] for arguments, _ in BAD]


@pytest.fixture(autouse=True)
def _files(_place: None) -> None:
    for name, content in FILES.items():
        Path(name).write_text(content)


def command_line(arguments: list[str], pair_flags: list[str]) -> list[str]:
    return [part for argument in arguments for part in (pair_flags if argument == PAIR else [argument])]


@pytest.mark.parametrize(("arguments", "reason"), BAD, ids=map(ascii, NAMES))
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(arguments, reason, call, pair_flags) -> None:
    found = call(*command_line(arguments, pair_flags))
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    assert len(found.err) < 1000
    assert reason in found.err
    assert not Path("data/failures").exists()  # nothing was logged


@pytest.mark.parametrize(("arguments", "reason"), [BAD[i] for i in range(0, len(BAD), 9)], ids=map(ascii, NAMES[::9]))
def test_with_json_it_is_an_object_on_stdout_too(arguments, reason, call, pair_flags) -> None:
    found = call(*command_line(arguments, pair_flags), "--json")
    assert found.code == 2
    assert found.json["status"] == "error"
    assert reason in found.json["error"] or "No such option '--json'" in found.json["error"]
    assert found.err.count("\n") == 1


def test_the_object_of_an_error_holds_nothing_of_the_command_before(call) -> None:
    assert call("generate", "first", "--model", "nowhere", "--json").json["prompt"] == "first"
    assert set(json.loads(call("status", "--nothing", "--json").out)) == {
        "schema_version",
        "status",
        "error",
        "exit_code",
    }
