"""What every key of a configuration knows of itself, and what is made of that."""

import dataclasses
import json
import re
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT

from disguide_jax import cli, models
from disguide_jax.config import Config, VictimTrainingConfig, to_dict, validate
from disguide_jax.errors import UserError
from disguide_jax.files import workdir
from disguide_jax.methods import METHODS
from disguide_jax.run import supervised
from disguide_jax.settings import RENAMED, REQUIRED, set_value, settings

KINDS = (Config, VictimTrainingConfig)
KEYS = [(kind, key) for kind in KINDS for key in settings(kind)]


def make(kind):
    """A configuration with nothing to complain about."""
    if kind is VictimTrainingConfig:
        return kind(name="some", dataset="digits", model="lenet5")
    config = kind(name="some", dataset="digits", labels="soft", query_budget=1000)
    config.victim.weights = "some.safetensors"
    return config


def with_value(kind, key, value):
    config = make(kind)
    set_value(config, key, value)
    return config


def wrong_values(known):
    """Values just outside of what is right."""
    if isinstance(known.default, float):
        yield from (float("nan"), float("inf"), -float("inf"))
    whole = isinstance(known.default, int) or known.most is not None
    if known.least is not None:
        yield known.least - (1 if whole else 1e-9)
    if known.most is not None:
        yield known.most + 1
    yield from (limit for limit in (known.above, known.below) if limit is not None)
    if known.one_of:
        yield known.one_of[0] + "?"


WRONG = [(kind, key, value) for kind, key in KEYS for value in wrong_values(settings(kind)[key])]
WRONG += [(kind, "name", name) for kind in KINDS for name in ("", "a/b")]
WRONG += [
    (Config, "victim.weights", ""),
    (Config, "victim.weights", "random"),  # of which model?
    (Config, "victim.std", (0.5, 0.0)),
    (Config, "schedule.fractions", (0.8, 0.4)),
    (Config, "schedule.fractions", (0.5, 1.0)),
    (Config, "clones.top_classes", 1),  # has nothing to differ from
    (Config, "replay.size", 255),  # less than a batch
    (Config, "generator.count", 3),  # 256 images cannot be parted so
    (Config, "generator.count", 256),  # one image has no batch statistics
    (VictimTrainingConfig, "decay_at", (0.5, 0.5)),
    (VictimTrainingConfig, "output", "weights.pt"),
]


def test_every_key_has_help_and_a_default_that_is_right():
    for kind, key in KEYS:
        known = settings(kind)[key]
        assert known.help, key
        if known.default is not REQUIRED and key != "victim.weights":
            assert known.allows(known.default), key
        validate(make(kind))


@pytest.mark.parametrize(("kind", "key", "value"), WRONG)
def test_a_value_just_outside_is_refused_by_name(kind, key, value):
    named = "victim.model" if value == "random" else key
    with pytest.raises(UserError, match=rf"^config\.{named} is .*; it must be ."):
        validate(with_value(kind, key, value))


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        (Config, "query_budget", 0, "config.query_budget is 0; it must be from 1 to 2,147,483,647"),
        (Config, "labels", "no", "config.labels is 'no'; it must be one of 'soft', 'hard'"),
        (Config, "clones.momentum", 1.0, "momentum is 1.0; it must be from 0 to below 1"),
        (Config, "clones.prob_floor", 0.5, "it must be above 0 and below 0.1"),
        (Config, "clones.learning_rate", 0.0, "it must be above 0"),
        (Config, "generator.diversity_weight", float("inf"), "is inf; it must be a finite number"),
        (Config, "batch_size", 1, "it must be at least 2, for batch statistics"),
        (Config, "replay.size", 8, "at least a batch (config.batch_size is 256)"),
        (VictimTrainingConfig, "epochs", 0, "config.epochs is 0; it must be at least 1"),
    ],
)
def test_messages_say_what_would_be_right(kind, key, value, message):
    with pytest.raises(UserError) as error:
        validate(with_value(kind, key, value))
    assert str(error.value).endswith(message)


def test_help_names_every_method_and_every_network():
    for kind in KINDS:
        model = settings(kind)["model" if kind is VictimTrainingConfig else "clones.model"]
        for name in models.CLASSIFIERS:
            root, variant = re.fullmatch(
                r"(.*?)(_(?:pool|b|bias|512|7x7|4096|tv.*|c100))?", name
            ).groups("")
            assert re.sub(r"wrn\d+_\d+", "wrnD_K", root) in model.help
            assert variant in model.help
    assert all(name in settings(Config)["method"].help for name in METHODS)
    assert all(name in settings(Config)["generator.model"].help for name in models.GENERATORS)


def test_a_workdir_goes_on_where_only_keys_differ_that_cannot_change_the_result(tmp_path):
    others = {int: 7, str: "other", bool: None, float: 0.55, tuple: (0.1, 0.2)}
    for kind, key in KEYS:
        started_with, known = json.loads(json.dumps(to_dict(make(kind)))), settings(kind)[key]
        other = 7 if key == "query_budget" else others.get(type(known.default), "other")
        now = with_value(kind, key, other)
        if known.resume:
            workdir.refuse_other_config(started_with, now, tmp_path, extend=False)
        else:
            with pytest.raises(UserError, match=rf"config\.{key}\b"):
                workdir.refuse_other_config(started_with, now, tmp_path, extend=False)
    assert {key for kind, key in KEYS if settings(kind)[key].resume} == {
        "checkpoint_every_epochs",
        *(f"victim.{key}" for key in ("authorised_by", "concurrency", "images_per_request")),
        *(f"victim.{key}" for key in ("requests_per_second", "retries", "timeout_seconds")),
        "victim.token_env",
        "offline.queries",
        "checkpoint_every_queries",
        "data_dir",
        "devices",
        "guard",
        "log_every_queries",
        "output",
        "rounds_per_call",
        "victim.made_by",
    }


def test_a_recipe_is_what_decides_about_the_weights():
    config = make(VictimTrainingConfig)
    no_part = {
        "checkpoint_every_epochs",
        "data_dir",
        "evaluate_every_epochs",
        "name",
        "output",
        "test_images",
    }
    everything = dataclasses.asdict(config)
    recipe = {key: value for key, value in everything.items() if key not in no_part}
    assert json.dumps(supervised.recipe(config)) == json.dumps(recipe), "the order counts"


def test_configurations_need_no_jax():
    code = "import sys, disguide_jax.config; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def said(monkeypatch, capsys, path, *arguments):
    """What a program prints on its way out, and its status."""
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(ROOT / path), run_name="__main__")
    return exit_.value.code or 0, "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("disguide_jax/main.py", Config),
        ("scripts/train_victim.py", VictimTrainingConfig),
        ("scripts/bench.py", Config),
    ],
)
def test_help_lists_every_key(monkeypatch, capsys, program, kind):
    status, text = said(monkeypatch, capsys, program, "--help")
    assert status == 0
    assert text.endswith(cli.describe_keys(kind) + "\n")
    lines = cli.describe_keys(kind).splitlines()
    assert max(map(len, lines)) <= 100
    for key, known in settings(kind).items():
        assert any(line.split(" = ")[0] == f"  {key}" for line in lines)
        assert known.right in " ".join(text.split())


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("--config.clone.steps=3", "config.clone.steps; did you mean config.clones.steps"),
        ("--config.fractions=(0.5,)", "did you mean config.schedule.fractions?"),
        ("--noconfig.replay.flp", "config.replay.flp; did you mean config.replay.flip"),
        ("--config.labels.soft=1", "config.labels.soft; did you mean"),
        ("--config.xyz=1", "config.xyz; --help lists all"),
        ("--config.old=1", "config.old is now called config.seed"),
    ],
)
def test_an_unknown_key_is_answered_with_what_would_be_right(monkeypatch, capsys, override, answer):
    monkeypatch.setitem(RENAMED, "old", "seed")
    config = f"--config={ROOT / 'configs/digits_hard.py'}:smoke"
    status, text = said(monkeypatch, capsys, "disguide_jax/main.py", config, override)
    assert status == 2
    assert text.startswith("error: unknown key: ")
    assert answer in text


def test_an_override_of_a_configuration_of_another_kind_is_one_message(monkeypatch, capsys):
    config = f"--config={ROOT / 'configs/victim_digits_lenet5.py'}"
    status, text = said(monkeypatch, capsys, "disguide_jax/main.py", config, "--config.labels=soft")
    assert status == 2
    assert text.startswith("error: --config: ")
    assert text.endswith("disguide_jax.config.Config: it returns a VictimTrainingConfig\n")
