"""What the layout promises: pure modules import without MLX, nobody imports the package twice, no path of one home."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mortal import HANGS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PURE = (
    "draftloop",
    "draftloop.evaluation.estimator",
    "draftloop.models.adapter_format",
    "draftloop.runtime.bars",
    "draftloop.cli",
    "draftloop.config",
    "draftloop.prompts.control_tokens",
    "draftloop.data_directory",
    "draftloop.data.teacher_top_k",
    "draftloop.evaluation.drift",
    "draftloop.errors",
    "draftloop.models.fingerprints",
    "draftloop.evaluation.gate",
    "draftloop.evaluation.held_out",
    "draftloop.evaluation.latency_profiles",
    "draftloop.models.manifest",
    "draftloop.runtime.memory",
    "draftloop.export.model_card",
    "draftloop.models.hub",
    "draftloop.models.names",
    "draftloop.data.compaction",
    "draftloop.data.exchange",
    "draftloop.data.removal",
    "draftloop.data.source_share",
    "draftloop.data.prompt_index",
    "draftloop.retraining.facts",
    "draftloop.retraining.log_bound",
    "draftloop.retraining.log_removal",
    "draftloop.retraining.needed",
    "draftloop.retraining.plan",
    *(
        f"draftloop.serving.{module}"
        for module in (
            "error_middleware",
            "api_error",
            "api_keys",
            "connections",
            "guard",
            "limits",
            "metrics",
            "security",
        )
    ),
    "draftloop.serving.sources",
    "draftloop.status",
    "draftloop.data.prompt_groups",
    "draftloop.prompts.prompt",
    "draftloop.data.record_lines",
    "draftloop.data.records",
    "draftloop.registry.registry",
    "draftloop.data.replay",
    "draftloop.retraining.run",
    "draftloop.retraining.running",
    "draftloop.evaluation.sign_flip",
    "draftloop.decoding.draft_length",
    "draftloop.evaluation.intervals",
    "draftloop.prompts.template_worker",
    "draftloop.prompts.template_sandbox",
    "draftloop.decoding.draft_length",
    "draftloop.training.token_kinds",
    "draftloop.training.dataset.examples",
    "draftloop.training.memory.fitting",
    "draftloop.training.token_report",
    "draftloop.training.dataset.batch_plan",
    "draftloop.retraining.gate_step",
    "draftloop.retraining.train_step",
    "draftloop.retraining.work",
    "draftloop.data.usable",
    "draftloop.training.report",
    "draftloop.training.run",
    "draftloop.training.time_limit",
    "draftloop.training.working_time",
    "draftloop.registry.verdicts",
    "draftloop.serving.chat_output",
    "draftloop.serving.requests",
    "draftloop.serving.responses",
    "draftloop.whereabouts",
    "draftloop.store.yaml_strict",
    *sorted(
        f"draftloop.{folder}.{file.stem}".removesuffix(".__init__")
        for folder in ("scheduling", "store")
        for file in (SOURCE / "draftloop" / folder).glob("*.py")
    ),
)
BLOCKED = ("mlx", "mlx_lm", "transformers")
PROGRAM = f"""
import importlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ImportError(f"{{name}} is blocked here")
sys.meta_path.insert(0, Blocked())
importlib.import_module(sys.argv[1])
"""


def import_without_mlx(module: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, module],
        capture_output=True,
        text=True,
        env=environment,
        timeout=HANGS,
        check=False,
    )


@pytest.mark.parametrize("module", PURE)
@pytest.mark.some(40)
def test_a_pure_module_imports_without_mlx(module):
    done = import_without_mlx(module)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["train", "--help"]], ids=" ".join)
def test_a_command_that_loads_no_model_imports_none_of_what_takes_long(arguments: list[str], tmp_path: Path):
    """SciPy alone is longer than all of `status`."""
    program = f"""
import sys
from draftloop.cli import run_command
assert run_command({arguments!r}) == 0
print([name for name in ("mlx", "mlx_lm", "transformers", "scipy", "huggingface_hub") if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_block_stops_a_module_that_needs_mlx():
    done = import_without_mlx("draftloop.decoding.sampling_filters")
    assert done.returncode != 0
    assert "is blocked here" in done.stderr


def python_files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes(), filename=str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names_it_twice(file: Path) -> bool:
    return any(name == "src.draftloop" or name.startswith("src.draftloop.") for name in imported(file))


def test_nobody_imports_the_package_through_src(tmp_path):
    """It would load every module a second time, under another name: two of every class."""
    for wrong in ("from src.draftloop import config", "import src.draftloop.config", "from src import draftloop"):
        (tmp_path / "wrong.py").write_text(wrong)
        assert names_it_twice(tmp_path / "wrong.py"), wrong
    files = python_files("src", "tests", "benchmarks", "scripts")
    assert [str(file) for file in files if names_it_twice(file)] == []
    assert len(files) > 20


HOME = re.compile(r"(?<![\w.])(/home/|/Users/|/root/|[A-Za-z]:\\+Users\\)\w", re.IGNORECASE)


def test_no_file_names_the_path_of_a_home_directory():
    assert HOME.search('"/home/ann/x"')
    assert HOME.search(r"C:\Users\ann")
    files = [
        *python_files("src", "benchmarks", "scripts"),
        *ROOT.glob("configs/*.yaml"),
        *ROOT.glob("scripts/*.sh"),
        ROOT / "Makefile",
    ]
    found = [f"{file}:{match.group()}" for file in files if (match := HOME.search(file.read_text("utf-8")))]
    assert found == []
