"""A new method is one file and one line: here ten lines, registered and run like the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import ROOT, load_script

from disguide_jax.core import learn, streams
from disguide_jax.core.exchange import Exchange, Method, drive
from disguide_jax.core.types import Stage
from disguide_jax.methods import METHODS
from disguide_jax.run import extraction
from disguide_jax.run import program as parts


# --- the method: random images, clones only
def stages(config):
    rounds = config.query_budget // config.batch_size
    return (Stage("extraction", rounds, config.batch_size, clone_updates=1),)


def make_round(kit, stage):
    shape = (kit.config.batch_size, kit.task.size, kit.task.size, kit.task.channels)

    def propose(state, index):
        return jax.random.uniform(streams.of_round(state, 0), shape, minval=-1), ()

    def learn_from(state, carry, images, answers):
        net, tx, loss_fn = kit.networks.clones, kit.tx.clones, kit.answers.loss
        clones, metrics = learn.teach(state.clones, net, tx, loss_fn, images, answers)
        return state.replace(clones=clones), metrics

    return (Exchange(shape[0], propose, learn_from),)


METHOD = Method("random", lambda config: None, stages, make_round)
# --- and the line in the table is in the fixture


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(METHODS, METHOD.name, METHOD)


def test_a_ten_line_method_runs_to_its_summary(tmp_path):
    config = load_script(ROOT / "configs/digits_hard.py").get_config("smoke")
    config.method = "random"
    summary = extraction.train_and_evaluate(config, tmp_path)
    assert summary["method"] == "random"
    assert summary["queries"] == 40
    assert (tmp_path / "clones/clone_1.safetensors").exists()
    assert (tmp_path / "overview.png").exists()


@pytest.mark.parametrize(
    "method",
    [
        "random",
        *(
            pytest.param(method, marks=pytest.mark.slow)
            for method in ("disguide", "dual_students", "dfme", "maze")
        ),
    ],
)
def test_around_a_victim_on_the_host_a_round_does_what_it_does_inside_one_program(method):
    soft = method in ("dfme", "maze")
    answer = tiny.smooth_brightness if soft else tiny.brightness
    config = tiny.config(method=method, labels="soft" if soft else "hard")
    config.generator.gray_every = 0 if soft else 8
    config.query_budget = 1000
    config.clones.steps = 3
    kit, state = tiny.build(config)
    stage = parts.stages_of(config)[-1]
    asked = []

    def on_host(images):
        assert isinstance(images, np.ndarray)
        asked.append(len(images))
        return images, np.asarray(answer(jnp.asarray(images)))

    made = METHODS[method].make_round(kit, stage)
    never = (part._replace(times=0) for part in made if isinstance(part, Exchange))
    play = drive((*never, *made), kit.query_dtype)
    found, metrics = play(jax.tree.map(jnp.copy, state), on_host)
    fused = jax.jit(parts.make_play(kit, stage))
    expected, expected_metrics = fused(state, jax.tree_util.Partial(answer))
    assert sum(asked) == stage.queries == int(found.queries)
    assert metrics.keys() == expected_metrics.keys()
    leaves = (found.clones, found.generator, found.answered, found.round)
    others = (expected.clones, expected.generator, expected.answered, expected.round)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), leaves, others
    )
