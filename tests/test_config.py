"""One typed field per tunable; flag > environment > YAML > default."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from draftloop.config import Config, Lora, Models, Section, Serve, Training, deprecations, leaves, resolve, to_yaml
from draftloop.errors import ConfigError

ROOT = Path(__file__).parents[1]
NO_ENVIRONMENT: dict[str, str] = {}


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(text, "utf-8")
        return path

    return write


# The files in configs/.


def test_default_yaml_is_written_from_the_classes():
    assert (ROOT / "configs/default.yaml").read_text("utf-8") == to_yaml(), "CONTRIBUTING.md says how to write it again"


def test_default_yaml_changes_nothing():
    resolved = resolve(ROOT / "configs/default.yaml", environment=NO_ENVIRONMENT)
    assert resolved.config == Config()
    assert resolved.origins == {}


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_every_ready_configuration_resolves(path):
    found = resolve(path, environment=NO_ENVIRONMENT).config
    if path.name.startswith("apple-silicon"):
        assert found.training.learning_rate == "auto"
        assert found.models.target.startswith("mlx-community/")
        assert f"cp configs/{path.name} configs/config.yaml" in path.read_text("utf-8")


def test_there_is_a_ready_configuration_for_each_memory_size():
    names = {path.name for path in ROOT.glob("configs/apple-silicon-*.yaml")}
    assert names == {f"apple-silicon-{size}gb{family}.yaml" for size in (16, 32, 64) for family in ("", "-qwen3")}


# Where a value comes from.


def test_without_a_file_everything_is_at_its_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resolved = resolve(environment=NO_ENVIRONMENT)
    assert resolved.config == Config()
    assert resolved.origins == {}


def test_config_yaml_is_taken_before_default_yaml_and_a_named_file_before_both(tmp_path, monkeypatch, written):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("configs/default.yaml").write_text("training:\n  epochs: 11\n")
    assert resolve(environment=NO_ENVIRONMENT).config.training.epochs == 11
    Path("configs/config.yaml").write_text("training:\n  epochs: 12\n")
    assert resolve(environment=NO_ENVIRONMENT).config.training.epochs == 12
    assert resolve(written("training:\n  epochs: 13\n"), environment=NO_ENVIRONMENT).config.training.epochs == 13


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(written):
    path = written("training:\n  epochs: 2\n")
    environment = {"DRAFTLOOP_TRAINING_EPOCHS": "3"}
    for arguments, value, origin in [
        ((written_nothing(path), {}, NO_ENVIRONMENT), Config().training.epochs, None),
        ((path, {}, NO_ENVIRONMENT), 2, f"file {path}, line 2"),
        ((path, {}, environment), 3, "environment DRAFTLOOP_TRAINING_EPOCHS"),
        ((path, {"training.epochs": 4}, environment), 4, "flag"),
    ]:
        resolved = resolve(*arguments)
        assert (resolved.config.training.epochs, resolved.origins.get("training.epochs")) == (value, origin)


def written_nothing(beside: Path) -> Path:
    empty = beside.with_name("empty.yaml")
    empty.touch()
    return empty


def test_a_flag_that_was_not_given_overrides_nothing(written):
    found = resolve(written("training:\n  epochs: 2\n"), {"training.epochs": None}, NO_ENVIRONMENT)
    assert found.config.training.epochs == 2


@pytest.mark.parametrize("key", list(leaves()))
def test_every_setting_can_be_set_from_the_environment(written, key):
    name = "DRAFTLOOP_" + key.upper().replace(".", "_")
    with pytest.raises(ConfigError, match=f"^environment {name}: {key} = '': "):  # nothing takes an empty text
        resolve(written(""), environment={name: ""})


def test_the_process_environment_is_looked_at_by_default(monkeypatch, written):
    monkeypatch.setenv("DRAFTLOOP_TRAINING_LORA_RANK", "5")
    assert resolve(written("")).config.training.lora.rank == 5


def test_variables_of_the_command_line_are_left_to_it(written):
    environment = {
        "DRAFTLOOP_DATA_DIR": "x",
        "DRAFTLOOP_CONFIG": "y",
        "TRAINING_EPOCHS": "1",
    }
    assert resolve(written(""), environment=environment).config == Config()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DRAFTLOOP_TRAINING_EPOCH", "DRAFTLOOP_TRAINING_EPOCHS"),
        ("DRAFTLOOP_TRAIN_EPOCHS", "DRAFTLOOP_TRAINING_EPOCHS"),
        ("DRAFTLOOP_LORA_RANK", "DRAFTLOOP_TRAINING_LORA_RANK"),
        ("DRAFTLOOP_DATADIR", "DRAFTLOOP_DATA_DIR"),
        ("DRAFTLOOP_CONFIG_FILE", "DRAFTLOOP_CONFIG"),
        ("DRAFTLOOP_", "DRAFTLOOP_CONFIG"),
        ("DRAFTLOOP_Training_Epochs", "DRAFTLOOP_"),
    ],
)
def test_a_mistyped_variable_is_refused_with_the_nearest_name(written, name, meant):
    with pytest.raises(ConfigError, match=f"variable {name} is none of draftloop's; did you mean {meant}"):
        resolve(written(""), environment={name: "3"})


# What is refused, and how it is said.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  epoch: 1\n", "line 2: unknown key training.epoch; did you mean training.epochs?"),
        ("training:\n  rank: 1\n", "line 2: unknown key training.rank; did you mean training.lora.rank?"),
        ("learning_rate: 1\n", "line 1: unknown key learning_rate; did you mean training.learning_rate?"),
        ("Training:\n  epochs: 1\n", "line 2: unknown key Training.epochs; did you mean training.epochs?"),
        ("training:\n\n  x:\n    y: 1\n", "line 4: unknown key training.x.y; "),
        ("zzz:\n  qqq: 1\n", "line 2: unknown key zzz.qqq; known ones: models.target, "),
        ("training: 5\n", "line 1: training = 5: input should be a valid dictionary"),
        ("training: [1]\n", "line 1: training = [1]: input should be a valid dictionary"),
        ("training:\n  epochs: 0\n", "line 2: training.epochs = 0: expected auto, or a whole number above 0"),
        ("training:\n  epochs: some\n", "training.epochs = 'some': expected auto, or a whole number above 0"),
        ("training:\n  batch_size: 0\n", "line 2: training.batch_size = 0: input should be greater than or equal to 1"),
        ("training:\n  batch_size: 2.5\n", "line 2: training.batch_size = 2.5: input should be a valid integer"),
        ("training:\n  epochs: yes\n", "line 2: training.epochs = True: true and false "),
        (
            "training:\n  learning_rate: .nan\n",
            "line 2: training.learning_rate = nan: expected auto, or a number above 0 and at most 1",
        ),
        ("training:\n  max_minutes: 1:30\n", "line 2: training.max_minutes = '1:30': input should be a valid number"),
        ("training:\n  max_minutes: -1\n", "line 2: training.max_minutes = -1: input should be greater than 0"),
        ("training:\n  loss: mse\n", "line 2: training.loss = 'mse': input should be 'ce', 'kl', 'tv', 'nla' or 'lk'"),
        ("training:\n  lora:\n    rank: 0\n", "line 3: training.lora.rank = 0: input should be greater than or equal"),
        ("models:\n  target:\n", "line 2: models.target = None: input should be a valid string"),
        ("models:\n  target: 7\n", "line 2: models.target = 7: input should be a valid string"),
        (
            "speculative:\n  seed: 9223372036854775808\n",
            "line 2: speculative.seed = 9223372036854775808: input should be",
        ),
        ("training.epochs: 1\ntraining:\n  epochs: 2\n", "training.epochs is set twice"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_its_remedy(written, text, message):
    with pytest.raises(ConfigError) as caught:
        resolve(written(text), environment=NO_ENVIRONMENT)
    assert message in str(caught.value)
    assert str(written(text)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_mistakes_are_named_at_once(written):
    with pytest.raises(ConfigError, match=r"training\.epochs = 0: .*; .*unknown key data\.x"):
        resolve(written("training:\n  epochs: 0\ndata:\n  x: 1\n"), environment=NO_ENVIRONMENT)


def test_a_flag_is_named_as_the_origin_of_its_mistake(written):
    with pytest.raises(ConfigError, match=r"^flag: training\.epochs = -3: "):
        resolve(written("training:\n  epochs: 2\n"), {"training.epochs": -3}, NO_ENVIRONMENT)


def test_a_setting_below_a_plain_value_is_refused(written):
    with pytest.raises(ConfigError, match=r"training\.epochs is set, and so is training as a plain value"):
        resolve(written("training: 5\n"), {"training.epochs": 1}, NO_ENVIRONMENT)


def test_a_very_long_value_is_not_repeated_whole(written):
    with pytest.raises(ConfigError) as caught:
        resolve(written(f"models:\n  target: [{'x' * 100_000}]\n"), environment=NO_ENVIRONMENT)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["training:\n", "training: {}\n", "training:\n  lora:\n", "training:\n  lora: {}\n"])
def test_a_section_with_nothing_under_it_is_at_its_defaults(written, text):
    assert resolve(written(text), environment=NO_ENVIRONMENT).config == Config()


def test_an_empty_section_can_be_filled_from_elsewhere(written):
    found = resolve(written("training:\n  lora: {}\n"), {"training.lora.rank": 3}, NO_ENVIRONMENT)
    assert found.config.training.lora == Lora(rank=3)


def test_a_small_learning_rate_is_a_number_in_the_file_and_in_the_environment(written):
    path = written("training:\n  learning_rate: 1e-5\n")
    assert resolve(path, environment=NO_ENVIRONMENT).config.training.learning_rate == 1e-5
    assert resolve(path, environment={"DRAFTLOOP_TRAINING_LEARNING_RATE": "2e-5"}).config.training.learning_rate == 2e-5


# The classes themselves.


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Config().training.epochs = 2  # type: ignore[misc]


def test_every_setting_is_described_and_its_default_valid():
    def settings(section: type[Section]):
        for name, field in section.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, Section):
                assert inner.__doc__
                yield from settings(inner)
            else:
                yield name, field

    assert all(field.description for _, field in settings(Config))
    assert Config.model_validate(Config().model_dump()) == Config()
    assert len(list(settings(Config))) == len(list(leaves()))


def test_the_keys_that_others_rely_on_exist():
    assert set(leaves()) >= {
        "models.target",
        "models.draft",
        *(f"speculative.{key}" for key in ("num_draft_tokens", "temperature", "top_p", "max_tokens")),
        *(f"training.{key}" for key in ("learning_rate", "batch_size", "gradient_accumulation_steps", "epochs")),
        *(f"training.{key}" for key in ("warmup_steps", "min_failure_cases", "replay_ratio", "max_loss")),
        *(f"training.lora.{key}" for key in ("rank", "scale", "dropout")),
        "data.max_prompt_length",
        "data.max_output_length",
    }


@pytest.mark.parametrize(
    "model", ["org/Model-4bit", "./my models #2", "~/m", "123", "null", "on", "*x", 'a"b: c', "é", "a\\b"]
)
def test_what_to_yaml_writes_is_read_back_as_the_same(written, model):
    saved = Config(
        models=Models(target=model), training=Training(learning_rate=1e-7, max_minutes=2.5, lora=Lora(rank=1))
    )
    assert resolve(written(to_yaml(saved)), environment=NO_ENVIRONMENT).config == saved


@pytest.mark.parametrize("text", ["[My-Mac.local, '[::1]']", "my-mac.local, [::1]"])
def test_a_list_of_texts_may_be_one_text_with_commas(written, text):
    listed = ("my-mac.local", "[::1]")
    value = text if text.startswith("[My") else f'"{text}"'
    assert resolve(written(f"serve:\n  allowed_hosts: {value}\n"), environment=NO_ENVIRONMENT).config.serve == Serve(
        allowed_hosts=listed
    )
    environment = {"DRAFTLOOP_SERVE_ALLOWED_HOSTS": ", ".join(listed)}
    assert resolve(written(""), environment=environment).config.serve.allowed_hosts == listed


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("allowed_hosts", "my-mac:8080"),
        ("allowed_hosts", "a,,b"),
        ("allowed_hosts", ["a", 5]),
        ("allowed_hosts", {}),
        ("allowed_origins", "*"),
        ("allowed_origins", "null"),
        ("allowed_origins", "chat.example.org"),
        ("allowed_origins", "https://chat.example.org/"),
        ("allowed_origins", "https://*.example.org"),
        ("source", "a b"),
        ("source", "x" * 65),
    ],
)
def test_a_name_of_another_form_is_refused_with_its_origin(written, key, value):
    with pytest.raises(ConfigError, match=rf"^flag: serve\.{key} = "):
        resolve(written(""), {f"serve.{key}": value}, NO_ENVIRONMENT)


def test_a_deprecated_key_is_read_and_said():
    assert deprecations(Config()) == []
    (line,) = deprecations(resolve(flags={"gate.max_drop": 0.02}, environment=NO_ENVIRONMENT).config)
    assert line.startswith("gate.max_drop = 0.02 in acceptance length still counts, in place of gate.max_drop_share")
