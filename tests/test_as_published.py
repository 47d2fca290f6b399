"""What was published, written down a second time: defaults, configurations and numbers.

A slip in one of these runs without an error and is seen by nobody for 20 million queries.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from disguide_jax import shipped
from disguide_jax.config import Config
from disguide_jax.core import images
from disguide_jax.options import GeneratorConfig
from disguide_jax.run import evaluate
from disguide_jax.run.progress import Progress
from disguide_jax.settings import set_value
from disguide_jax.study import paper

DEFAULTS = {  # METHODS: what the authors' code does
    "method": "disguide",
    "batch_size": 256,
    "num_clones": 2,
    "generator.model": "dfme",
    "generator.width": 64,
    "generator.latent_dim": 256,
    "generator.count": 1,
    "generator.optimizer": "adam",
    "generator.learning_rate": 1e-4,
    "generator.weight_decay": 0.0,
    "generator.diversity_weight": 0.2,
    "generator.gray_every": 8,
    "clones.model": "resnet18_8x",
    "clones.soft_loss": "l1",
    "clones.label_smoothing": 0.0,
    "clones.boundary_weight": 0.0,
    "clones.temperature": 1.0,
    "clones.top_classes": 0,
    "clones.learning_rate": 0.03,
    "clones.momentum": 0.9,
    "clones.weight_decay": 5e-4,
    "clones.average_decay": 0.0,
    "replay.size": 1_000_000,
    "replay.batches": 3,
    "replay.crop_padding": 0,
    "replay.flip": False,
    "replay.candidates": 1,
    "schedule.shape": "steps",
    "schedule.fractions": (0.4, 0.8),
    "schedule.factor": 0.3,
    "victim.input_space": "pre-transform",
    "disguide.generator_steps": 1,
    "disguide.fresh_batches": 1,
    "disguide.candidates": 1,
    "zeroth_order.epsilon": 1e-3,
}

PAPER = {  # what the five configurations of Table 1 change: dataset, labels, budget, lambda, victim
    "c10_soft": ("cifar10", "soft", 20_000_000, 0.2, "cifar10-resnet34_8x"),
    "c10_hard": ("cifar10", "hard", 8_000_000, 0.2, "cifar10-resnet34_8x"),
    "c100_soft": ("cifar100", "soft", 10_000_000, 0.04, "cifar100-resnet34_8x"),
    "c100_hard": ("cifar100", "hard", 10_000_000, 0.04, "cifar100-resnet18_8x"),
    "c100_hard_r34": ("cifar100", "hard", 10_000_000, 0.04, "cifar100-resnet34_8x"),
}


def value(config, key):
    return functools.reduce(getattr, key.split("."), config)


@pytest.mark.parametrize("key", DEFAULTS)
def test_defaults_are_those_of_the_authors_code(key):
    config = Config(name="a", dataset="cifar10", labels="hard", query_budget=256)
    assert value(config, key) == DEFAULTS[key]


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_configurations_change_what_the_paper_says_and_nothing_else(name):
    dataset, labels, budget, diversity_weight, victim = PAPER[name]
    config = shipped.load(name)
    assert (config.dataset, config.labels, config.query_budget) == (dataset, labels, budget)
    assert config.victim.weights == f"victims/{victim}.safetensors"
    assert config.victim.model == victim.split("-")[1]
    assert config.schedule.block_rounds == 150
    for key, default in (DEFAULTS | {"generator.diversity_weight": diversity_weight}).items():
        assert value(config, key) == default, key


@pytest.mark.parametrize("name", ["c10_soft", "c10_hard", "c100_soft", "c100_hard"])
def test_the_best_change_what_helped_on_fashion_mnist_and_nothing_else(name):
    config, best = shipped.load(name), shipped.load(f"{name}_best")
    fashion = shipped.load(f"fashion_{name.split('_')[1]}_best")
    for key in ("replay.batches", "disguide.shapes", "disguide.candidates", "schedule.shape"):
        assert value(config, key) != value(fashion, key)
        set_value(config, key, value(fashion, key))
    config.name = best.name
    assert config == best


TABLES_1_5_6 = {  # victim, final, maximum, individual
    "c10_soft": ("95.54", "94.02 ± 0.25", "94.26 ± 0.20", "93.95 ± 0.15"),
    "c10_hard": ("95.54", "87.93 ± 1.74", "88.94 ± 0.92", "87.33 ± 0.98"),
    "c100_soft": ("77.52", "69.47 ± 0.88", "69.83 ± 1.01", "68.84 ± 0.54"),
    "c100_hard": ("77.70", "62.04 ± 1.03", "62.52 ± 0.91", "60.55 ± 0.54"),
    "c100_hard_r34": ("77.52", "58.72 ± 2.42", "/", "/"),
}
REPORTED = {  # of earlier systems, in Table 1
    ("CIFAR-10, soft", "DFME, reported"): ("95.54", "88.10"),
    ("CIFAR-10, soft", "DFMS, reported"): ("95.59", "91.24"),
    ("CIFAR-10, hard", "DFMS, reported"): ("95.59", "84.51"),
    ("CIFAR-100, hard", "DFMS, reported"): ("78.52", "43.56"),
}
TABLE_2 = [  # earlier system's accuracy and budget, DisGUIDE's queries
    ("c10_soft", 0.8810, 20_000_000, "3.13M ± 0.57M"),
    ("c10_soft", 0.9124, 20_000_000, "7.01M ± 1.30M"),
    ("c10_hard", 0.8451, 8_000_000, "4.02M ± 1.43M"),
    ("c100_hard", 0.4356, 10_000_000, "3.87M ± 0.37M"),
]


def test_the_papers_numbers_are_the_papers():
    rows = paper.FINAL["full"]
    ours = {row.cell.config: tuple(row.paper)[:4] for row in rows if row.cell}
    assert ours == TABLES_1_5_6
    gains = {row.cell.config: row.paper.gain for row in rows if row.cell}
    for name, earlier in (("c10_soft", 91.24), ("c10_hard", 84.51), ("c100_hard", 43.56)):
        final, interval = TABLES_1_5_6[name][1].split(" ± ")
        assert gains[name] == f"{float(final) - earlier:.2f} ± {interval}"
    earlier = {(row.setting, row.technique): tuple(row.paper)[:2] for row in rows if not row.cell}
    assert earlier == REPORTED
    races = [(r.cell.config, r.accuracy, r.budget, r.paper) for r in paper.RACES["full"]]
    assert races == TABLE_2
    gray = [row.paper.final for row in paper.GRAYSCALE["full"]]
    assert gray == ["93.25 ± 0.15", "93.36 ± 0.16", "85.54 ± 2.47", "87.93 ± 1.74"]
    transform = [tuple(row.paper)[:2] for row in paper.TRANSFORM["full"]]
    assert transform == [("95.54", "93.36 ± 0.16"), ("95.54", "93.45 ± 0.23")]
    assert paper.FIG3_PAPER == {1_000_000: 0.9336}
    assert paper.FIG4_PAPER == {3: 0.9336, 5: 0.9374}
    assert sorted(paper.VICTIMS.values()) == [77.52, 77.70, 95.54]


@pytest.mark.parametrize("weight", [0.04, 0.2, 3.0])
def test_a_round_weighs_diversity_as_configured(weight):
    generator = GeneratorConfig(width=2, latent_dim=4, diversity_weight=weight)
    config = tiny.config(generator=generator)
    kit, state = tiny.build(config)
    step = tiny.make_step(kit)
    _, metrics = jax.jit(step)(state, jax.tree_util.Partial(tiny.brightness))
    expected = -metrics["gen/disagreement"] + weight * metrics["gen/diversity_loss"]
    np.testing.assert_allclose(metrics["gen/loss"], expected, rtol=1e-5)
    assert abs(float(metrics["gen/diversity_loss"])) > 0.1


def test_latents_are_standard_normal_and_the_gray_channel_any_of_all():
    keys = jax.random.split(jax.random.key(0), 200)
    z, channel = jax.vmap(lambda key: images.draw_latent(key, 16, 32, 3))(keys)
    z = np.asarray(z)
    assert z.shape == (200, 16, 32)
    np.testing.assert_allclose([z.mean(), z.std(), (z**4).mean()], [0, 1, 3], atol=0.15)
    shares = np.bincount(channel, minlength=3) / 200
    np.testing.assert_allclose(shares, 1 / 3, atol=0.1)


def test_the_generators_decay_joins_the_gradient_as_pytorchs_adam_has_it():
    """Not AdamW's, which shrinks the weights beside the step."""
    generator = GeneratorConfig(width=2, latent_dim=4, weight_decay=0.1, learning_rate=0.01)
    tx = tiny.build(tiny.config(generator=generator))[0].tx.generator
    param, grads = 2.0, (0.3, -0.1, 0.2)
    params = {"w": jnp.full(1, param)}
    opt_state, mean, square = tx.init(params), 0.0, 0.0
    for t, gradient in enumerate(grads, start=1):
        update, opt_state = tx.update({"w": jnp.full(1, gradient)}, opt_state, params)
        params = {"w": params["w"] + update["w"]}
        gradient += 0.1 * param
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        corrected = (square / (1 - 0.999**t)) ** 0.5
        param -= 0.01 * mean / (1 - 0.9**t) / (corrected + 1e-8)
        np.testing.assert_allclose(params["w"], param, rtol=1e-5)


def test_the_maximum_is_that_of_all_evaluations_and_milestones_keep_the_first():
    progress = Progress()
    for queries, accuracy in ((100, 0.3), (200, 0.85), (300, 0.6)):
        scores = evaluate.Scores(np.array([0.1]), accuracy, 0.2, 0.4)
        progress.note(scores, queries)
    assert progress.max_soft_vote_accuracy == 0.85
    assert progress.queries_to["0.3"] == 100
    assert progress.queries_to["0.6"] == progress.queries_to["0.85"] == 200
    assert progress.queries_to["0.9"] is None
