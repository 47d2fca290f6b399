"""The replay that an endpoint's ledger keeps, against plain insertion and real interruptions."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, load_script

from disguide_jax.core import pixels, replay
from disguide_jax.files.ledger import TRAINING, Format, Ledger
from disguide_jax.run import extraction, refill
from disguide_jax.victims.paid import Paid

FORMAT = Format((4, 4, 1), (3,), "float32")
VICTIM = """
import numpy as np

def probs(images):
    levels = images.reshape(len(images), -1).mean(axis=1) / 25.6
    answers = np.exp(-np.square(levels[:, None] - np.arange(10)))
    return answers / answers.sum(axis=1, keepdims=True)
"""


def batches(num, size=2):
    rng = np.random.default_rng(0)
    for i in range(num):
        images = rng.integers(0, 256, (size, 4, 4, 1), np.uint8)
        yield i * size, images, rng.dirichlet(np.ones(3), size).astype(np.float32)


def fill(folder, num):
    with Ledger(folder, FORMAT) as ledger:
        for position, images, answers in batches(num):
            ledger.send(TRAINING, position, images)
            ledger.answer(TRAINING, position, answers)


def empty(capacity, dtype):
    image = jax.ShapeDtypeStruct((2, 4, 4, 1), jnp.dtype(dtype))
    return replay.init(capacity, image, jax.ShapeDtypeStruct((2, 3), jnp.float32))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(("capacity", "num"), [(8, 0), (8, 3), (8, 4), (8, 9), (5, 2), (5, 8)])
def test_the_replay_is_as_if_it_had_been_inserted_batch_by_batch(tmp_path, capacity, num, dtype):
    fill(tmp_path, num + 1)  # one more than the checkpoint knows
    expected = empty(capacity, dtype)
    for _, images, answers in batches(num):
        expected = replay.insert(expected, pixels.decode(jnp.asarray(images)), jnp.asarray(answers))
    with Ledger(tmp_path, FORMAT) as ledger:
        found = refill.from_ledger(empty(capacity, dtype), ledger, 2 * num)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("capacity", [20, 12, 5])
def test_answers_that_are_lost_are_named_and_the_others_fill_the_first_slots(
    tmp_path, caplog, capacity
):
    fill(tmp_path, 10)
    path = tmp_path / "queries.bin"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 30)  # within the last answers
    with caplog.at_level(logging.WARNING), Ledger(tmp_path, FORMAT) as ledger:
        found = refill.from_ledger(empty(capacity, "uint8"), ledger, 20)
    assert f"lost 2 of the last {capacity} answers" in caplog.text
    # Of the last 5 the oldest is the second half of its batch, which comes whole.
    kept = np.concatenate([images for _, images, _ in batches(10)])[-(capacity + capacity % 2) : -2]
    assert int(found.size) == len(kept)
    np.testing.assert_array_equal(found.images[: len(kept)], kept)


def test_what_the_ledger_has_lost_after_it_was_learnt_costs_no_rounds(tmp_path):
    class Endpoint:
        name = "test"

        def ask(self, images, count):
            return np.full((len(images), 3), 1 / 3, np.float32)

        def close(self):
            pass

    fill(tmp_path, 3)
    path = tmp_path / "queries.bin"
    path.write_bytes(path.read_bytes()[:-30])
    for opened in range(2):
        with Ledger(tmp_path, FORMAT) as ledger:
            ledger.expect(TRAINING, 6)
            paid = Paid(Endpoint(), ledger, budget=20, check_stop=lambda: None)
            # A checkpoint has learnt from six images, then eight.
            assert paid.payable(6 + 2 * opened) == 20
            paid.ask(TRAINING, 6 + 2 * opened, np.zeros((2, 4, 4, 1), np.uint8))


@pytest.mark.slow
def test_an_interrupted_run_replays_from_its_ledger_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "levels.py").write_text(VICTIM)

    def run(workdir):
        config = load_script(ROOT / "configs/digits_soft.py").get_config("smoke")
        config.victim.weights, config.victim.endpoint = "", "python:levels:probs"
        config.query_budget, config.checkpoint_every_queries = 150, 24
        config.replay.size = 44  # wraps within a batch
        return extraction.train_and_evaluate(config, tmp_path / workdir)

    whole = run("whole")
    answer = Ledger.answer

    class Killed(BaseException):
        pass

    def dying(at):
        def answer_and_die(ledger, account, position, answers):
            answer(ledger, account, position, answers)
            if account == TRAINING and position >= at:
                raise Killed

        return answer_and_die

    with monkeypatch.context() as patch:
        for at in (24, 56, 112):  # at once after a checkpoint, and one and two rounds later
            patch.setattr(Ledger, "answer", dying(at))
            with pytest.raises(Killed):
                run("cut")
    found = run("cut")
    assert found["clones_sha256"] == whole["clones_sha256"]
    for workdir in ("whole", "cut"):
        saved = sorted((tmp_path / workdir / "checkpoints").glob("*/manifest.json"))
        assert json.loads(saved[-1].read_text())["checkpoint"]["segments"] == []
        assert not list((tmp_path / workdir / "checkpoints/replay").iterdir())
