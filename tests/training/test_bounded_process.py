"""A step for real in a process that gets no more memory: MLX on a CPU does not raise there, it dies by a signal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mortal import HANGS

TESTS = Path(__file__).parents[1]
PROGRAM = """
import resource, sys
from dataclasses import replace
from draftloop import prepare_process
prepare_process()
import mlx.core as mx
from tiny import tiny_llama, tiny_pair
from workshop import examples_of
from draftloop.models import adapter as lora
from draftloop.runtime import memory
from draftloop.models.adapter_format import AdapterConfig
from draftloop.config import Training
from draftloop.training.forward import make_forward
from draftloop.training.dataset.batch_plan import Window
from draftloop.training.step import Learner
from draftloop.training.teacher import LiveTeacher
from draftloop.training.memory.out_of_memory import estimate_fit

mx.set_default_device(mx.cpu)
pair, draft = tiny_pair(64), tiny_llama(width=256, layers=6, seed=2, sharpness=1.0)
greedy = [replace(one, ids=(one.ids * 40)[:257], prompt_length=200) for one in examples_of(pair, 32, temperature=0.0)]
lora.attach_fresh(draft, AdapterConfig(rank=4, scale=2.0, dropout=0.0), seed=0)
teacher = LiveTeacher(make_forward(pair.target, "target", print), 64, greedy, 64, print)
learner = Learner(draft, make_forward(draft, "draft", print), teacher, 64, Training(loss="kl"), 10)
learner.probe(32, 32, 1 << 30)  # threads and libraries are there
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (400 << 20),) * 2)
if sys.argv[1] == "auto":
    learner.fit = estimate_fit(learner, [greedy], memory.budget("auto", memory.read_device()), 0, 0)
result = learner.train(Window(0, (tuple(greedy),)), 0, 0, lambda: None)
print(len(learner.fit.parts(greedy)[0]), len(result.skipped), result.tokens)
"""


def in_400_megabytes(way: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(TESTS / "support"), str(TESTS.parent / "src")])
    environment = {**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, way]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANGS, env=environment, check=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the address space is bounded on Linux")
def test_a_step_that_would_kill_the_process_is_made_in_parts_that_fit():
    unfitted, fitted = in_400_megabytes("as it is"), in_400_megabytes("auto")
    assert unfitted.returncode < 0  # or the bound would show nothing
    assert fitted.returncode == 0, fitted.stderr
    parts, skipped, tokens = map(int, fitted.stdout.split())
    assert parts > 1
    assert (skipped, tokens) == (0, 32 * 57)
