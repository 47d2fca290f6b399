"""Detectors against plain loops and SciPy, on made-up streams, real images and extractions."""

import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, load_script
from scipy import stats

from disguide_jax.core.exchange import make_call
from disguide_jax.errors import UserError
from disguide_jax.files import datasets
from disguide_jax.run import extraction, watching
from disguide_jax.run import program as programs
from disguide_jax.run.compiled import Shared, compiled
from disguide_jax.victims.detectors import DETECTORS, Real, prada
from disguide_jax.victims.detectors.label_histogram import LabelHistogram, chi_squared_p
from disguide_jax.victims.detectors.prada import Prada, shapiro_w

rng = np.random.default_rng(0)


def plain_distances(rows, labels, capacity):
    """Algorithm of the paper, one query after the other; full sets lose their oldest member."""
    sets, all_distances, found = {}, {}, []
    for row, label in zip(rows, labels, strict=True):
        held, added = sets.setdefault(label, []), all_distances.setdefault(label, [])
        if not held:
            held.append(row)
            added.append(0.0)
            continue
        distance = min(np.sqrt(np.square(row - other).sum()) for other in held)
        found.append(distance)
        threshold = max(np.mean(added[:i]) - np.std(added[:i]) for i in range(1, len(added) + 1))
        if distance > max(threshold, 0):
            held.append(row)
            added.append(distance)
            del held[:-capacity]
    return np.array(found)


@pytest.mark.parametrize("capacity", [1000, 12])
def test_distances_are_those_of_a_plain_loop_whatever_the_batches(capacity, monkeypatch):
    monkeypatch.setattr(prada, "CAPACITY", 3 * capacity)
    images = rng.integers(0, 256, (300, 4, 4, 1), np.uint8)
    images[100:130] = images[:30]  # some come again
    labels = rng.integers(0, 3, 300)
    rows = images.reshape(300, -1) / 127.5 - 1
    expected = plain_distances(rows, labels, capacity)
    for at_once in (1, 7, 300):
        watching_ = Prada(3, delta=0.0)
        for i in range(0, 300, at_once):
            watching_.observe(images[i : i + at_once], labels[i : i + at_once])
        np.testing.assert_allclose(watching_.distances, expected, rtol=1e-5, atol=1e-5)
    as_floats = Prada(3, delta=0.0)
    as_floats.observe(np.float32(rows).reshape(images.shape), labels)
    np.testing.assert_allclose(as_floats.distances, expected, rtol=1e-5, atol=1e-5)


def test_what_it_holds_does_not_grow_with_the_stream(monkeypatch):
    monkeypatch.setattr(prada, "CAPACITY", 30)
    monkeypatch.setattr(prada, "WINDOW", 50)
    watching_ = Prada(3, delta=0.0)
    for _ in range(10):
        watching_.observe(rng.normal(size=(60, 4, 4, 1)), rng.integers(0, 3, 60))
        arrays = [a for held in watching_._sets.values() for a in (held._images, held._squares)]
        assert sum(a.nbytes for a in arrays) + 8 * len(watching_.distances) == (watching_.num_bytes)
    assert watching_.num_bytes == 4 * 30 * 17 + 8 * 50
    assert len(watching_.distances) == 50


def test_w_is_scipys_without_outliers():
    hand = np.array([148, 154, 158, 160, 161, 162, 166, 170, 182, 195, 236.0])  # of their paper
    np.testing.assert_allclose(shapiro_w(hand), 0.79, atol=0.005)
    assert shapiro_w(hand) == stats.shapiro(hand).statistic
    normal = rng.normal(size=200)
    assert shapiro_w(np.append(normal, 1e3)) == stats.shapiro(normal).statistic
    assert shapiro_w(np.ones(200)) == 0


def steps(num):
    """Queries as attacks make them: small steps of one length from one image."""
    start = rng.normal(size=(1, 6, 6, 1))
    ways = np.sign(rng.normal(size=(num, 6, 6, 1)))
    return np.where(np.arange(num)[:, None, None, None] % 2, start + 0.1 * ways, 5 * ways)


def test_prada_knows_steps_from_natural_distances_at_the_same_query_in_any_batches():
    natural, labels = rng.normal(size=(600, 6, 6, 1)), rng.integers(0, 2, 600)
    assert Prada(2, delta=0.9).observe(natural, labels) is None
    attack = np.concatenate([natural[:200], steps(400)])
    alarms = set()
    for at_once in (1, 13, 600):
        watching_ = Prada(2, delta=0.9)
        for i in range(0, 600, at_once):
            alarm = watching_.observe(attack[i : i + at_once], labels[i : i + at_once])
        assert alarm.why.endswith("below 0.900")
        alarms.add(alarm.query)
    (query,) = alarms
    assert 200 < query < 300
    assert query % prada.EVERY == 0
    assert watching_.observe(natural, labels).query == query, "the first one stays"


def test_chi_squared_is_scipys():
    counts, expected = np.array([30, 10, 20]), np.array([20.0, 25.0, 15.0])
    theirs = stats.chisquare(counts, expected).pvalue
    assert chi_squared_p(counts, expected) == pytest.approx(theirs)


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_a_histogram_sounds_at_the_end_of_the_first_window_that_is_odd(at_once):
    honest = np.tile(np.arange(5), 60)  # three windows
    odd = np.concatenate([honest[:150], np.zeros(150, int)])
    images = np.zeros((300, 1, 1, 1))
    found = []
    for labels in (honest, odd):
        watching_ = LabelHistogram(np.ones(5))
        for i in range(0, 300, at_once):
            alarm = watching_.observe(images[i : i + at_once], labels[i : i + at_once])
        found.append(alarm)
    assert found[0] is None
    assert found[1].query == 200  # half of the window from 101 on is of one class
    assert found[1].why.startswith("class 0 in 60% of 100 queries, usually 20%")
    skewed = LabelHistogram(np.array([100, 1, 1, 1, 1]))
    assert skewed.observe(images, np.zeros(300, int)) is None
    assert skewed.observe(images, honest).query == 400
    assert skewed.num_bytes == 2 * 5 * 8


def test_a_class_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="above 0 in every class"):
        LabelHistogram(np.array([1.0, 0.0]))


def test_without_real_images_detectors_have_their_usual_thresholds():
    nothing = Real(np.zeros((0, 4, 4, 1), np.uint8), np.zeros(0, int), 5)
    assert DETECTORS["prada"].calibrate(nothing)()._delta == prada.DELTA
    histogram = DETECTORS["label_histogram"].calibrate(nothing)()
    np.testing.assert_array_equal(histogram._expected, [20.0] * 5)


def test_a_stream_is_watched_up_to_the_last_alarm_or_as_far_as_wanted():
    def stream():
        for i in range(100):
            taken.append(i)
            yield np.zeros((30, 1, 1, 1)), np.zeros(30, int)

    for most, num_taken, num_seen in ((None, 4, 120), (70, 3, 70)):
        taken = []
        alarms, num = watching.watch(stream(), {"it": LabelHistogram(np.ones(5))}, most=most)
        assert (len(taken), num) == (num_taken, num_seen)
        assert (alarms["it"].query if alarms["it"] else None) == (100 if most is None else None)


def test_detectors_keep_quiet_on_most_orders_of_real_images():
    """The same for every processor: what a digit is called is taken from its label."""
    train, test = (datasets.load("digits", split) for split in ("train", "test"))
    for name, kind in DETECTORS.items():
        make = kind.calibrate(Real(train.images[:600], train.labels[:600], 10))
        alarms = watching.false_alarms(make, Real(test.images, test.labels, 10), orders=10)
        assert sum(alarm is not None for alarm in alarms) <= 2, name


@pytest.mark.slow
def test_an_extraction_of_digits_is_noticed_within_its_first_thousand_queries():
    config = load_script(ROOT / "configs/digits_soft.py").get_config()
    program = programs.build(config)
    prepared = watching.prepare(watching.real_images(program), orders=10)
    found = watching.judge(watching.queries(program), prepared, most=1_000)
    for name in DETECTORS:
        assert found[name].alarm, name
        assert found[name].alarm.query <= 1_000
        assert f"alarm at query {found[name].alarm.query:,}: " in str(found[name])
        assert sum(alarm is not None for alarm in found[name].false_alarms) <= 3
        assert found[name].num_real == 500


def smoke(name="digits_soft", **victim):
    config = load_script(ROOT / f"configs/{name}.py").get_config("smoke")
    for key, value in victim.items():
        setattr(config.victim, key, value)
    return config


@pytest.mark.parametrize("defence", ["", pytest.param("label_only", marks=pytest.mark.slow)])
def test_the_stream_is_what_the_run_sends(defence):
    """Three rounds against those of the fused program, whose replay holds their images."""
    program = programs.build(smoke("digits_hard", defence=defence))
    (stage,) = program.stages
    call = make_call(program.call(stage), looped=False)
    state = compiled(program).start(jax.random.key(program.config.seed))
    for _ in range(3):
        state, *_ = call(state, program.victim, 1)
    sent = [batch for batch, _ in zip(watching.queries(program), range(3), strict=False)]
    images, labels = (np.concatenate(part) for part in zip(*sent, strict=True))
    np.testing.assert_allclose(images, state.replay.images[:24], atol=1e-3)
    assert (labels == state.replay.answers[:24]).mean() > 0.9


def test_functions_are_shared_by_runs_that_differ_in_seeds_and_victims_alone(tmp_path):
    functions_of = Shared()
    defended = smoke(defence="noise", noise_scale=0.2)
    defended.seed, defended.name = 1, "behind noise"
    first, second = programs.build(smoke()), programs.build(defended)
    assert functions_of(first) is functions_of(second)

    def clones(config, place, of):
        return extraction.train_and_evaluate(config, place, functions_of=of)["clones_sha256"]

    found = clones(smoke(), tmp_path / "first", functions_of)
    after_another = clones(defended, tmp_path / "second", functions_of)
    defended.rounds_per_call = 3  # as on a GPU, of rounds with the victim in them
    assert after_another == clones(defended, tmp_path / "alone", watching.AROUND)
    assert after_another != found
    for other in (smoke("digits_hard"), smoke(input_space="post-transform")):
        assert functions_of(programs.build(other)) is not functions_of(first)
    longer = smoke()
    longer.query_budget *= 2  # whose learning rate drops later
    assert functions_of(programs.build(longer)) is not functions_of(first)


@pytest.mark.slow
def test_every_query_of_every_method_passes_by():
    for name in ("digits_dfme", "digits_dfms"):
        program = programs.build(smoke(name))
        assert sum(len(labels) for _, labels in watching.queries(program)) == program.queries


@pytest.mark.slow
def test_a_workdir_is_judged_by_playing_its_run_again(tmp_path, capsys, monkeypatch):
    extraction.train_and_evaluate(smoke(), tmp_path / "w")
    before = sorted(p.name for p in (tmp_path / "w").iterdir())
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["detect", str(tmp_path / "w"), "--orders", "2"])
    monkeypatch.setattr(prada, "ORDERS", 1)
    load_script("detect").main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(DETECTORS)
    for line in lines:
        assert ": no alarm in 40 queries; 500 real images in 2 random orders: " in line
    assert sorted(p.name for p in (tmp_path / "w").iterdir()) == before
    with pytest.raises(UserError, match="holds no extraction"):
        watching.judge_workdir(tmp_path)


ENDPOINT = """
import numpy as np

def probs(images):
    level = images.reshape(len(images), -1).mean(axis=1) / 25.6
    answers = np.exp(-np.square(level[:, None] - np.arange(10)))
    return answers / answers.sum(axis=1, keepdims=True)
"""


@pytest.mark.parametrize(
    ("defence", "data"),
    [("", True), ("noise", True), pytest.param("noise", False, marks=pytest.mark.slow)],
)
def test_of_an_endpoint_the_ledger_tells_and_nothing_is_sent(defence, data, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(prada, "ORDERS", 1)
    (tmp_path / "gleaming.py").write_text(ENDPOINT)
    config = smoke(weights="", endpoint="python:gleaming:probs", defence=defence)
    if not data:
        config.dataset, config.victim.num_classes = "", 10
        config.victim.channels, config.victim.image_size = 1, 32
    summary = extraction.train_and_evaluate(config, tmp_path / "w")
    (tmp_path / "gleaming.py").unlink()
    sys.modules.pop("gleaming")
    found = watching.judge_workdir(tmp_path / "w", orders=2)
    assert {watched.num_queries for watched in found.values()} == {8 * summary["rounds"]}
    assert {watched.num_real for watched in found.values()} == {250 if data else 0}
    assert all(("not calibrated" in str(watched)) != data for watched in found.values())
