"""Whole runs against a Python function: what it gets, what is counted, what is refused."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, load_script

from disguide_jax.config import validate
from disguide_jax.errors import UserError
from disguide_jax.run import extraction
from disguide_jax.settings import set_value

VICTIM = '''
"""The class of an image is its brightness; every image is counted in a file."""
import os
import numpy as np

def count(images):
    assert images.dtype == np.uint8
    with open("count", "ab", buffering=0) as file:
        file.write(b"." * len(images))

def levels(images):
    count(images)
    return images.reshape(len(images), -1).mean(axis=1) / 25.6

def labels(images):
    return levels(images).astype(int)

def probs(images):
    answers = np.exp(-np.square(levels(images)[:, None] - np.arange(10)))
    return answers / answers.sum(axis=1, keepdims=True)

def raises(images):
    raise RuntimeError("out of order")

def raises_later(images):
    answers = labels(images)
    if os.path.getsize("count") > 560:
        raise RuntimeError("out of order")
    return answers

not_a_function = 3
'''


@pytest.fixture
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "brightness.py").write_text(VICTIM)
    yield
    sys.modules.pop("brightness", None)


def config_of(function="labels", name="digits_hard", **changes):
    config = load_script(ROOT / f"configs/{name}.py").get_config("smoke")
    config.victim.weights = ""
    config.victim.endpoint = f"python:brightness:{function}"
    for key, value in changes.items():
        setattr(config, key, value)
    return config


def without_data(config):
    config.dataset = ""
    config.victim.num_classes, config.victim.channels, config.victim.image_size = 10, 1, 32
    return config


def counted(folder="."):
    return os.path.getsize(os.path.join(folder, "count"))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("digits_hard", "labels"),
        pytest.param("digits_soft", "probs", marks=pytest.mark.slow),
        pytest.param("digits_dfme", "probs", marks=pytest.mark.slow),
        pytest.param("digits_maze", "probs", marks=pytest.mark.slow),
        pytest.param("digits_dual_students", "probs", marks=pytest.mark.slow),
        pytest.param("digits_dfms", "labels", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("_here")
def test_every_method_copies_a_function_and_counts_as_it_does(name, function, tmp_path):
    config = config_of(function, name)
    if config.method in ("dfme", "maze"):
        config.zeroth_order.epsilon = 1.0
    summary = extraction.train_and_evaluate(config, tmp_path / "w")
    assert summary["evaluation_queries"] == 500
    assert summary["queries"] + 500 == counted()
    assert summary["queries"] <= config.query_budget
    assert 0 <= summary["soft_vote_accuracy"] <= 1
    assert (tmp_path / "w/overview.png").exists()


@pytest.mark.usefixtures("_here")
def test_steps_that_8_bits_round_away_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"epsilon is 0\.001.*dfme needs at least 0\.43"):
        extraction.train_and_evaluate(config_of("probs", "digits_dfme"), tmp_path / "w")


@pytest.mark.usefixtures("_here")
def test_without_a_data_set_accuracies_are_null_and_fidelity_is_paid_for(tmp_path):
    config = without_data(config_of("labels", query_budget=200))
    summary = extraction.train_and_evaluate(config, tmp_path / "w")
    for name in ("victim_accuracy", "soft_vote_accuracy", "hard_vote_accuracy", "clone_accuracy"):
        assert summary[name] is None
    assert summary["max_soft_vote_accuracy"] is None
    assert 0 <= summary["fidelity"] <= 1
    assert summary["queries"] == counted() == 4 + 24 * 8  # 2 %, and what is left in full rounds
    assert summary["evaluation_queries"] == 0
    assert (tmp_path / "w/overview.png").exists()
    config.query_budget = 400  # of which fidelity keeps what it has
    summary = extraction.train_and_evaluate(config, tmp_path / "w", extend=True)
    assert summary["queries"] == counted() == 4 + 49 * 8


@pytest.mark.usefixtures("_here")
def test_a_function_that_fails_ends_the_run_and_the_same_command_goes_on(tmp_path):
    config = config_of("raises_later", query_budget=120)
    with pytest.raises(UserError, match=r"raised RuntimeError: out of order \(.*brightness\.py"):
        extraction.train_and_evaluate(config, tmp_path / "w")
    source = (tmp_path / "brightness.py").read_text()
    (tmp_path / "brightness.py").write_text(source.replace("> 560", "> 10000"))
    del sys.modules["brightness"]
    summary = extraction.train_and_evaluate(config, tmp_path / "w")
    assert counted() == summary["queries"] + 500
    assert summary["queries"] == 120  # the batch that failed was sent twice, so 14 rounds
    assert summary["rounds"] == 14


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("python:brightness:absent", "no attribute 'absent'"),
        ("python:no_such_module:labels", "No module named 'no_such_module'"),
        ("python:brightness:not_a_function", "int, not a function"),
        ("python:brightness", "package.module:function"),
        ("python::labels", "package.module:function"),
        ("ftp://x", "must begin with one of python:"),
        ("python:broken:labels", r"importing broken fails: ZeroDivisionError.*broken\.py, line 1"),
        ("python:brightness:raises", "RuntimeError: out of order"),
        ("python:brightness:probs", None),  # an attacker may take the largest
    ],
)
@pytest.mark.usefixtures("_here")
def test_an_endpoint_that_is_not_there_is_named(tmp_path, endpoint, said):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    config = config_of()
    config.victim.endpoint = endpoint
    if said is None:
        extraction.train_and_evaluate(config, tmp_path / "w")
        return
    with pytest.raises(UserError, match=said) as error:
        extraction.train_and_evaluate(config, tmp_path / "w")
    assert "config.victim.endpoint" in str(error.value) or endpoint in str(error.value)


@pytest.mark.usefixtures("_here")
def test_a_workdir_is_that_of_the_endpoint_that_answered_first(tmp_path):
    with pytest.raises(UserError, match="out of order"):
        extraction.train_and_evaluate(config_of("raises"), tmp_path / "w")
    extraction.train_and_evaluate(config_of("labels"), tmp_path / "w")
    with pytest.raises(UserError, match="started with another victim"):
        extraction.train_and_evaluate(config_of("probs"), tmp_path / "w")


@pytest.mark.usefixtures("_here")
def test_labels_where_probabilities_were_agreed_are_refused(tmp_path):
    config = config_of("labels", "digits_soft")
    with pytest.raises(UserError, match=r"brightness:labels answered.*config\.labels=hard"):
        extraction.train_and_evaluate(config, tmp_path / "w")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("victim.weights", "random", "either a file of weights"),
        ("victim.endpoint", "", "either a file of weights"),
        ("query_dtype", "float32", "uint8"),
        ("victim.input_space", "post-transform", "pre-transform"),
        ("fidelity_images", 10, "0 where there is a data set"),
    ],
)
def test_keys_that_contradict_an_endpoint_are_refused(key, value, said):
    config = config_of()
    set_value(config, key, value)
    with pytest.raises(UserError, match=said):
        validate(config)


@pytest.mark.usefixtures("_here")
def test_what_is_said_of_the_victim_must_agree_with_the_data_set(tmp_path):
    config = config_of()
    config.victim.num_classes = 7
    with pytest.raises(UserError, match="num_classes is 7, but that of the data set digits is 10"):
        extraction.train_and_evaluate(config, tmp_path / "w")
    config = without_data(config_of())
    config.victim.channels = 0
    with pytest.raises(UserError, match=r"victim\.channels is 0; without a data set"):
        extraction.train_and_evaluate(config, tmp_path / "w")


@pytest.mark.parametrize(
    ("endpoint", "key", "value", "by"),
    [
        ("", "top_k", 3, "weights are at hand"),
        ("", "concurrency", 8, "weights are at hand"),
        ("", "authorised_by", "me, today", "weights are at hand"),
        ("python:brightness:labels", "retries", 9, "no service"),
        ("python:brightness:labels", "layout", "NCHW", "no ONNX file"),
        ("onnx:victim.onnx", "token_env", "TOKEN", "no service"),
        ("http://localhost/", "logits", True, "no ONNX file"),
    ],
)
def test_keys_of_another_kind_of_victim_are_refused(endpoint, key, value, by):
    config = load_script(ROOT / "configs/digits_hard.py").get_config("smoke")
    if endpoint:
        config.victim.weights, config.victim.endpoint = "", endpoint
    validate(config)
    set_value(config, f"victim.{key}", value)
    with pytest.raises(UserError, match=rf"victim\.{key} is {value!r}; .*{by}"):
        validate(config)


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.usefixtures("_here")
def test_what_was_answered_trains_other_clones_for_no_query(tmp_path, monkeypatch, data):
    def change(config):
        return config if data else without_data(config)

    first = extraction.train_and_evaluate(change(config_of("probs", "digits_soft")), tmp_path / "w")
    before = counted()
    script = load_script("export_queries")
    monkeypatch.setattr(sys, "argv", ["export_queries", str(tmp_path / "w"), "set.npz"])
    script.main()
    with np.load("set.npz") as kept:
        assert kept["images"].shape == (40, 32, 32, 1)
        assert kept["answers"].shape == (40, 10)
        assert len(kept["test_images"]) == (500 if data else 1)
    config = change(config_of("probs", "digits_soft", method="offline", seed=5))
    config.offline.queries, config.offline.epochs = "set.npz", 3
    config.clones.model = "lenet5"
    summary = extraction.train_and_evaluate(config, tmp_path / "offline")
    assert counted() == before
    assert summary["queries"] == summary["evaluation_queries"] == 0
    assert summary["rounds"] == 3 * 40 // 8
    assert summary["clones_sha256"] != first["clones_sha256"]
    assert (summary["soft_vote_accuracy"] is not None) == data

    config.labels = "hard"
    assert extraction.train_and_evaluate(config, tmp_path / "hard")["rounds"] == 15
    with np.load("set.npz") as kept:
        arrays = dict(kept)
    arrays["images"] = arrays["images"][:, :28]
    np.savez("cut.npz", **arrays)
    config.offline.queries = "cut.npz"
    with pytest.raises(UserError, match=r"cut\.npz: its images are \[40, 28, 32, 1\]"):
        extraction.train_and_evaluate(config, tmp_path / "cut")
    for name, said in (("", "is empty"), ("absent.npz", "no file"), ("count", "damaged")):
        config.offline.queries = name
        with pytest.raises(UserError, match=said):
            extraction.train_and_evaluate(config, tmp_path / "none")


@pytest.mark.slow
def test_after_twenty_kills_the_function_has_counted_what_the_summary_says(tmp_path):
    (tmp_path / "brightness.py").write_text(VICTIM)
    budget = 3000
    command = [
        *(sys.executable, "-m", "disguide_jax.main", "--workdir=w"),
        f"--config={ROOT / 'configs/digits_hard.py'}:smoke",
        "--config.victim.weights=",
        "--config.victim.endpoint=python:brightness:labels",
        f"--config.query_budget={budget}",
        "--config.checkpoint_every_queries=200",
    ]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    chance, kills = random.Random(0), 0
    while True:
        with (tmp_path / "output").open("ab") as output:
            process = subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=output, stderr=output
            )
        count, seen = tmp_path / "count", 0
        seen = count.stat().st_size if count.exists() else 0
        while kills < 20 and process.poll() is None:  # until it has asked a little more
            if count.exists() and count.stat().st_size > seen + chance.randint(0, 100):
                time.sleep(chance.uniform(0, 0.01))
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.001)
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL, (tmp_path / "output").read_text()
    summary = json.loads((tmp_path / "w/summary.json").read_text())
    assert kills == 20
    # A kill between the ledger's last word and the function's count, microseconds, costs a batch.
    sent = summary["queries"] + summary["evaluation_queries"]
    assert sent - 2 * 8 <= counted(tmp_path) <= sent
    assert summary["queries"] <= budget
    assert summary["evaluation_queries"] >= 500
    # Each kill costs one batch at most; the rest of the budget was learnt from.
    assert summary["rounds"] * 8 >= budget - 21 * 8
    assert np.isfinite(summary["soft_vote_accuracy"])


@pytest.mark.slow
def test_a_service_that_fails_one_request_in_five_is_copied_and_counts_the_same(tmp_path):
    weights = "embedded:digits-lenet5.safetensors"
    command = [sys.executable, str(ROOT / "scripts/serve_victim.py"), "--port=0"]
    command += [f"--weights={weights}", "--dataset=digits", "--failures=0.2", "--count=served"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            config = config_of(name="digits_soft", query_budget=160)
            config.victim.endpoint = server.stdout.readline().split()[-1]
            config.victim.concurrency, config.victim.retries = 4, 20
            summary = extraction.train_and_evaluate(config, tmp_path / "w")
        finally:
            server.terminate()
    served = sum(map(int, (tmp_path / "served").read_text().split()))
    assert served == summary["queries"] + summary["evaluation_queries"]
    assert summary["queries"] <= 160
    assert summary["rounds"] * 8 < summary["queries"]  # some were sent more than once
    assert summary["victim_accuracy"] == 0.988
