"""One setting of the process for all tests: a fast BLAS, whole float32, two threads, no compilation, no network."""

from __future__ import annotations

import os

os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("MLX_ENABLE_TF32", "0")  # float32 with 10 bits is what newer GPUs take for it
os.environ["COLUMNS"] = "120"  # tables are as wide wherever the tests run
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
for _name in [name for name in os.environ if name.startswith("DRAFTLOOP_") and name != "DRAFTLOOP_NO_OPENBLAS"]:
    del os.environ[_name]

from collections import defaultdict  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from draftloop import prepare_process  # noqa: E402

EXAMPLES = 40  # of a property, where a test says no number of its own
prepare_process()  # no test may import MLX before

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shop import Shop

    from draftloop.config import Models
    from draftloop.models.pair import Pair


def pytest_configure(config: pytest.Config) -> None:
    """Of properties an ordinary run tries fewer examples, too."""
    hypothesis.settings.register_profile("ordinary", max_examples=EXAMPLES)
    if config.getoption("markexpr") != "":
        hypothesis.settings.load_profile("ordinary")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test with many cases of one kind, marked `some(n)`, an ordinary run takes n that are spread over them."""
    if config.getoption("markexpr") == "":
        return  # `make test-all`
    cases: dict[tuple[Path, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("some") is not None:
            cases[item.path, item.nodeid.partition("[")[0]].append(item)
    left_out = set[pytest.Item]()
    for found in cases.values():
        marker = found[0].get_closest_marker("some")
        assert marker is not None
        (count,) = marker.args
        taken = {round(i * (len(found) - 1) / max(1, count - 1)) for i in range(count)}
        left_out.update(item for i, item in enumerate(found) if i not in taken)
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _keeps_its_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that gives way would make all tests after it slow: no process takes its priority back."""
    nice = os.nice
    monkeypatch.setattr(os, "nice", lambda more: nice(0) + more)


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Directories of a small target and draft that agree now and then. Nobody changes them."""
    from model_dirs import write_pair

    return write_pair(tmp_path_factory.mktemp("small_pair"))


@pytest.fixture(scope="session")
def small_pair(small_models: Models) -> Pair:
    """The pair of `small_models`, loaded once; who attaches an adapter takes it off again."""
    from draftloop.models.pair import load_pair

    return load_pair(small_models)


@pytest.fixture(scope="session")
def embedded_pair() -> Pair:
    """The pair that comes with the code, loaded once; who attaches an adapter takes it off again.

    In float32 on every device, as on a CPU: in its own 16 bits a batch of another shape says something else.
    """
    import mlx.core as mx

    from draftloop.config import Models
    from draftloop.models.pair import load_pair

    pair = load_pair(Models(target="embedded:target", draft="embedded:draft"))
    for model in (pair.target, pair.draft):
        model.set_dtype(mx.float32)
    return pair


@pytest.fixture
def on_the_cpu() -> Iterator[None]:
    """For a test of what is promised, or done, on a CPU alone."""
    from devices import cpu

    with cpu():
        yield


@pytest.fixture(scope="module")
def module_on_the_cpu() -> Iterator[None]:
    """The same for a whole module, and the fixtures that its tests share."""
    from devices import cpu

    with cpu():
        yield


@pytest.fixture
def root() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def collected(tmp_path_factory: pytest.TempPathFactory, small_models: Models) -> Shop:
    """Generations of a hundred prompts; nobody changes it."""
    from shop import PROMPTS, Shop, config_of

    from draftloop.data_directory import DataDirectory

    shop = Shop(DataDirectory(tmp_path_factory.mktemp("collected") / "data"), config_of(small_models))
    shop.collect(PROMPTS)
    return shop


@pytest.fixture(scope="session")
def promoted(tmp_path_factory: pytest.TempPathFactory, collected: Shop) -> Shop:
    """The same after its first promotion; nobody changes it."""
    shop = collected.copy(tmp_path_factory.mktemp("promoted") / "data")
    assert shop.retrain().outcome == "promoted"
    return shop


@pytest.fixture(scope="session")
def with_teacher(tmp_path_factory: pytest.TempPathFactory, small_models: Models) -> Shop:
    """The same with the target's distributions in the log; nobody changes it."""
    from shop import PROMPTS, Shop, config_of

    from draftloop.data_directory import DataDirectory

    shop = Shop(DataDirectory(tmp_path_factory.mktemp("with_teacher") / "data"), config_of(small_models))
    shop.collect(PROMPTS, top_k=32)
    return shop


@pytest.fixture
def shop(collected: Shop, tmp_path: Path) -> Shop:
    return collected.copy(tmp_path / "data")
