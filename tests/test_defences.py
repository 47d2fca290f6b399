"""Defences against hand-computed numbers, traced and on the host, and what a run says of them."""

import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import ROOT, load_script

from disguide_jax.core import losses, pixels
from disguide_jax.errors import Stopped, UserError
from disguide_jax.files import datasets
from disguide_jax.options import VictimConfig
from disguide_jax.run import answering, asked, extraction, observer, price
from disguide_jax.run import program as programs
from disguide_jax.settings import set_value, settings
from disguide_jax.victims import defences, network
from disguide_jax.victims.contract import Contract
from disguide_jax.victims.defences import DEFENCES, misinformation, noise
from disguide_jax.victims.defences.high_confidence import HighConfidence
from disguide_jax.victims.defences.kind import Defence, Kind, both
from disguide_jax.victims.defences.label_only import LabelOnly
from disguide_jax.victims.defences.misinformation import Misinformation
from disguide_jax.victims.defences.noise import Noise
from disguide_jax.victims.defences.reverse_sigmoid import ReverseSigmoid
from disguide_jax.victims.defences.rounding import Rounding
from disguide_jax.victims.defences.top_k import TopK
from disguide_jax.victims.host import Function

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (64, 8, 8, 1), np.uint8)
FLOATS = pixels.decode(jnp.asarray(IMAGES))
WRONG = jax.tree_util.Partial(lambda images: jnp.full((len(images), 4), 0.25))
ALL = [
    Rounding(1),
    Rounding(3),
    TopK(1),
    TopK(3),
    TopK(9),
    LabelOnly(),
    Noise(0.1, keeps_label=False),
    Noise(0.5, keeps_label=True),
    HighConfidence(0.5),
    HighConfidence(1.0),
    ReverseSigmoid(1.0, 0.1),
    ReverseSigmoid(5.0, 3.0),
    Misinformation(WRONG, 20.0, 0.7),
]
HANDED = [  # defence, probabilities, what is sent, what an attacker reads
    (Rounding(1), [0.449, 0.551], [0.4, 0.6], [0.4, 0.6]),
    (Rounding(1), [0.96, 0.03, 0.01], [1.0, 0, 0], [1 / 1.1, 0.05 / 1.1, 0.05 / 1.1]),
    (Rounding(2), [0.125, 0.875], [0.12, 0.88], [0.12, 0.88]),  # halves to even
    (Rounding(1), [0.04] * 25, [0.0] * 25, [0.04] * 25),
    # Of equals the first.
    (TopK(2), [0.1, 0.5, 0.2, 0.2], [0, 0.5, 0.2, 0], [0.15, 0.5, 0.2, 0.15]),
    (TopK(1), [0.0, 1.0], [0, 1], [2.0**-24, 1]),
    (TopK(5), [0.3, 0.7], [0.3, 0.7], [0.3, 0.7]),
    (HighConfidence(0.3), [0.2, 0.5, 0.3], [0, 0.5, 0.3], [0.2, 0.5, 0.3]),
    (HighConfidence(0.5), [0.3, 0.4, 0.3], [0, 0.4, 0], [0.3, 0.4, 0.3]),
    (HighConfidence(0.5), [0.25] * 4, [0.25, 0, 0, 0], [0.25] * 4),
    (ReverseSigmoid(1.0, 1.0), [0.9, 0.1], [0.5, 0.5], None),
    (ReverseSigmoid(0.5, 1.0), [0.9, 0.1], [0.7, 0.3], None),
    (ReverseSigmoid(0.5, 1.0), [0.8, 0.1, 0.1], [0.52, 0.24, 0.24], None),
    (ReverseSigmoid(3.0, 1.0), [0.9, 0.1], [0, 1], None),  # 0.9 - 1.2 is below 0
    # a = sigmoid(10 (0.7 - 0.7)) = 1/2
    (Misinformation(WRONG, 10.0, 0.7), [0.7, 0.1, 0.1, 0.1], [0.475] + [0.175] * 3, None),
    (Misinformation(WRONG, 1e3, 0.8), [0.9, 0.1, 0, 0], [0.9, 0.1, 0, 0], None),
    (Misinformation(WRONG, 1e3, 0.8), [0.7, 0.1, 0.1, 0.1], [0.25] * 4, None),
]


def random_probs(num, num_classes, scale=3.0):
    logits = scale * rng.normal(size=(num, num_classes))
    return jnp.asarray(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), jnp.float32)


@pytest.mark.parametrize(("defence", "probs", "sent", "read"), HANDED)
def test_answers_are_those_computed_by_hand(defence, probs, sent, read):
    answered = defence(FLOATS[:1], jnp.array([probs]))
    np.testing.assert_allclose(answered[0], sent, atol=1e-6)
    np.testing.assert_allclose(defence.read(answered)[0], sent if read is None else read, atol=2e-7)


def test_the_label_is_the_likeliest_class_and_of_equals_the_first():
    labels = LabelOnly()(FLOATS[:2], jnp.array([[0.4, 0.2, 0.4], [0.1, 0.2, 0.7]]))
    assert labels.tolist() == [0, 2]
    assert labels.dtype == jnp.int32


@pytest.mark.parametrize("defence", ALL)
@pytest.mark.parametrize("num_classes", [2, 4])
def test_what_is_read_is_always_probabilities_however_sure_the_victim_is(defence, num_classes):
    if isinstance(defence, Misinformation) and num_classes != 4:
        defence = defence.replace(wrong=lambda images: jnp.full((len(images), 2), 0.5))
    edges = [np.eye(num_classes), np.full((1, num_classes), 1 / num_classes)]
    sure = jax.nn.softmax(jnp.array([[200.0] + [0.0] * (num_classes - 1)]))
    probs = jnp.concatenate([*map(jnp.float32, edges), sure, random_probs(40, num_classes)])
    sent = defence(FLOATS[: len(probs)], probs)
    if isinstance(defence, LabelOnly):
        assert sent.tolist() == probs.argmax(-1).tolist()
        return
    assert np.isfinite(sent).all()
    assert sent.min() >= 0
    read = defence.read(sent)
    assert read.min() >= 0
    np.testing.assert_allclose(read.sum(axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("defence", ALL)
def test_an_answer_does_not_depend_on_the_others_of_its_batch(defence):
    probs, order = random_probs(64, 4), rng.permutation(64)
    whole = defence(FLOATS, probs)
    one_by_one = jax.vmap(lambda x, p: defence(x[None], p[None])[0])(FLOATS, probs)
    jitted = jax.jit(lambda defence, *given: defence(*given))(defence, FLOATS[order], probs[order])
    np.testing.assert_allclose(one_by_one, whole, atol=1e-6)
    np.testing.assert_allclose(jitted, whole[order], atol=1e-6)


def test_a_sure_class_stays_the_likeliest_behind_the_reverse_sigmoid():
    for scale in (1.0, 5.0, 30.0):
        probs = random_probs(2000, 6, scale)
        sure = probs.max(axis=-1) > 0.501
        sent = ReverseSigmoid(1.0, 0.1)(jnp.zeros((2000, 1, 1, 1)), probs)
        assert sure.sum() > 100
        assert (sent.argmax(-1) == probs.argmax(-1))[sure].all()


def test_noise_has_its_scale_and_differs_between_images_alone():
    images = pixels.decode(jnp.asarray(rng.integers(0, 256, (2000, 4, 4, 1), np.uint8)))
    half = jnp.full((2000, 2), 0.5)
    defence = Noise(0.01, keeps_label=False)
    sent = defence(images, half)
    # p' = 1/2 + (a - b) / 2 to first order
    np.testing.assert_allclose(sent[:, 0].std(), 0.01 / np.sqrt(2), rtol=0.05)
    np.testing.assert_allclose(sent[:, 0].mean(), 0.5, atol=1e-3)
    assert len(np.unique(sent[:, 0])) > 1900
    np.testing.assert_array_equal(sent, defence(images, half), "asked twice, answered the same")


def test_a_pixel_of_another_level_or_place_makes_other_noise():
    image = np.full((8, 8, 1), 100, np.uint8)
    others = np.stack([image] * 5)
    others[1, 0, 0] += 1
    others[2, 7, 7] += 1
    others[3, 0, 0], others[3, 0, 1] = 101, 99  # sums are the same
    others[4, 0, 0], others[4, 0, 1] = 99, 101
    keys = jax.random.key_data(noise.keys_of(pixels.decode(jnp.asarray(others))))
    assert len(np.unique(np.asarray(keys), axis=0)) == 5


def test_the_least_step_of_forward_differences_makes_other_noise_and_rounding_does_not():
    floats = FLOATS[:1]
    keys = jax.random.key_data(
        noise.keys_of(jnp.concatenate([floats, floats + 1e-7, floats + 2e-5]))
    )
    np.testing.assert_array_equal(keys[0], keys[1])
    assert (keys[0] != keys[2]).any()


def test_noise_that_keeps_the_label_swaps_and_nothing_else():
    probs = random_probs(64, 4, scale=0.3)
    free, kept = (Noise(0.3, keeps_label=keeps)(FLOATS, probs) for keeps in (False, True))
    assert (free.argmax(-1) != probs.argmax(-1)).any()
    np.testing.assert_array_equal(kept.argmax(-1), probs.argmax(-1))
    np.testing.assert_allclose(np.sort(kept), np.sort(free), atol=1e-7)


def test_reverse_cross_entropy_is_minus_log_of_all_but_the_label():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]))
    found = losses.reverse_cross_entropy(logits, labels=jnp.array([0, 1]))
    np.testing.assert_allclose(found, -np.log([0.3, 0.8]), rtol=1e-6)
    sure = jnp.array([[200.0, 0.0, 0.0]])
    grads = jax.grad(lambda x: losses.reverse_cross_entropy(x, labels=jnp.array([0])).sum())(sure)
    assert np.isfinite(grads).all()
    np.testing.assert_allclose(grads, [[1, -0.5, -0.5]], atol=1e-6)


@pytest.fixture(scope="module")
def digits():
    """Test images, and the embedded victim, which answers with probabilities."""
    config = load_script(ROOT / "configs/digits_soft.py").get_config()
    victim, task, _ = asked.load_undefended(config, hard_labels=False)
    return config, victim, task, datasets.load("digits", "test")


@pytest.mark.slow
def test_what_misinforms_hardly_ever_tells_the_truth_and_is_always_the_same(digits):
    config, _, task, test = digits
    owner = asked.owner_of(config, task)
    wrong = misinformation.make(owner).wrong
    floats = pixels.decode(jnp.asarray(test.images))
    probs = wrong(floats)
    assert (probs.argmax(-1) == test.labels).mean() < 0.03
    assert np.take_along_axis(np.asarray(probs), test.labels[:, None], 1).mean() < 0.03
    again = misinformation.make(owner).wrong
    for one, other in zip(*map(jax.tree.leaves, (wrong, again)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_every_defence_states_its_price_on_real_images(digits):
    config, *_ = digits
    prices = {about.split(":")[0]: found for about, found in price.prices(config)}
    assert list(prices) == list(DEFENCES)
    for name, found in prices.items():
        assert found.accuracy == 0.988, name
        assert 0.95 <= found.defended_accuracy <= 0.99, name
    assert prices["label_only"].defended_accuracy == 0.988
    assert 0 < prices["round"].change < prices["label_only"].change < 0.02
    assert 1.4 < prices["reverse_sigmoid"].change < 1.7
    assert str(prices["top_k"]).startswith("accuracy 0.9880 -> 0.9880, mean sum |p' - p| 0.00")


def test_a_price_is_what_counting_gives(digits):
    _, victim, _, test = digits
    few = datasets.Split(test.images[:150], test.labels[:150])
    floats = pixels.decode(jnp.asarray(few.images))
    probs = np.asarray(victim(floats))
    sent = np.asarray(Noise(0.5, keeps_label=False)(floats, jnp.asarray(probs)))
    found = price.price(victim, Noise(0.5, keeps_label=False), few)
    assert found.accuracy == pytest.approx((probs.argmax(1) == few.labels).mean())
    assert found.defended_accuracy == pytest.approx((sent.argmax(1) == few.labels).mean())
    assert found.change == pytest.approx(abs(probs - sent).sum(1).mean(), rel=1e-4)
    assert price.price(victim, Rounding(1), few).accuracy == found.accuracy


def test_an_answer_that_names_nothing_is_wrong():
    nothing = Rounding(1)
    test = datasets.Split(np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 0]))
    found = price.price_of(nothing, test, jnp.zeros((2, 1, 1, 1)), jnp.full((2, 25), 0.04))
    assert (found.accuracy, found.defended_accuracy) == (1, 0)


@pytest.mark.parametrize("hard_labels", [False, True])
def test_a_traced_victim_and_an_endpoint_answer_the_same_numbers(digits, hard_labels):
    _, victim, _, test = digits
    images, floats = test.images[:40], pixels.decode(jnp.asarray(test.images[:40]))
    ask = jax.jit(lambda images: victim(pixels.decode(images)))
    endpoint = Function("it", ask, Contract(10, hard_labels=False))
    for defence in (Noise(0.3, keeps_label=False), ReverseSigmoid(1.0, 0.1), TopK(2)):
        traced = defences.Defended(victim, defence, hard_labels)
        on_host = defences.DefendedEndpoint(endpoint, defence, hard_labels=hard_labels)
        answered = on_host.ask(images, lambda num: None)
        assert answered.dtype == (np.int32 if hard_labels else np.float32)
        np.testing.assert_allclose(answered, jax.jit(lambda v, x: v(x))(traced, floats), atol=1e-6)
        own = on_host.undefended.ask(images, lambda num: None)
        plain = ask(images)
        np.testing.assert_allclose(own, plain.argmax(-1) if hard_labels else plain, rtol=1e-6)
    assert hard_labels or answered.min() > 0, "classes that TopK hides are read as unlikely"


def config_of(labels="soft", **changes):
    config = load_script(ROOT / f"configs/digits_{labels}.py").get_config("smoke")
    for key, value in changes.items():
        set_value(config, f"victim.{key}", value)
    return config


def test_without_a_defence_the_traced_program_is_what_it_was():
    program = programs.build(config_of())
    assert type(program.victim) is network.Victim
    bare = network.make_victim(
        net := tiny.classifier(),
        net.init(jax.random.key(0)),
        mean=tiny.TASK.mean,
        std=tiny.TASK.std,
        hard_labels=False,
    )
    images = jnp.zeros((2, 32, 32, 3))
    behind = defences.Defended(bare, TopK(1), hard_labels=False)
    logits = jax.make_jaxpr(lambda v, x: jax.nn.softmax(plain_logits(v, x)))(bare, images)
    assert str(jax.make_jaxpr(lambda v, x: v(x))(bare, images)) == str(logits)
    assert str(jax.make_jaxpr(lambda v, x: v(x))(behind, images)) != str(logits)


def plain_logits(victim, images):
    with jax.default_matmul_precision("highest"):
        x = (images - victim.mean) / victim.std
        return victim.apply(victim.variables, x, train=False)[0]


@pytest.mark.parametrize(
    ("labels", "changes", "said"),
    [
        ("soft", {"defence": "rounding"}, "defence is 'rounding'; it must be one of round, top_k,"),
        ("soft", {"defence": "label_only"}, "victim.defence is 'label_only', whose answer is la"),
        ("soft", {"defence": "label_only"}, "config.labels is 'soft': set config.labels=hard, or"),
        ("hard", {"defence": "top_k", "top_k": 3}, "'top_k', whose answer would be the same label"),
        ("hard", {"defence": "top_k", "top_k": 3}, "set config.labels=soft, or choose a defence a"),
        ("hard", {"defence": "noise", "noise_keeps_label": True}, "config.labels=soft, or choose"),
        ("soft", {"defence": "round"}, "victim.decimals is 0; with config.victim.defence=round it"),
        ("soft", {"defence": "top_k"}, "victim.top_k is 0; with config.victim.defence=top_k it mu"),
        ("soft", {"defence": "noise", "cut_off": 0.4}, "victim.cut_off is 0.4; the defence noise"),
        ("soft", {"defence": "noise", "top_k": 2}, "victim.top_k is 2; the defence noise makes no"),
        ("soft", {"noise_scale": 0.5}, "noise_scale is 0.5; a victim without a defence makes no u"),
        ("soft", {"defence": "noise", "noise_scale": 0.0}, "noise_scale is 0.0; it must be above"),
    ],
)
def test_a_defence_that_cannot_be_is_refused(labels, changes, said):
    with pytest.raises(UserError) as error:
        programs.resolve(config_of(labels, **changes))
    assert said in str(error.value)


def test_without_labelled_images_nothing_learns_to_be_wrong():
    config = config_of(defence="misinformation")
    config.dataset = ""
    with pytest.raises(UserError, match=r"learns from labelled images.*config\.dataset is empty"):
        answering.defence_of(config)


def test_help_names_every_defence():
    about = settings(VictimConfig)["defence"].help
    assert all(name in about for name in DEFENCES)
    assert all(kind.name == name for name, kind in DEFENCES.items())
    keys = {key for kind in DEFENCES.values() for key in kind.keys}
    assert keys <= set(settings(VictimConfig))


@pytest.mark.parametrize("labels", ["soft", pytest.param("hard", marks=pytest.mark.slow)])
def test_a_new_defence_is_a_file_and_a_line(labels, tmp_path, monkeypatch):
    class Backwards(Defence):
        def __call__(self, images, probs):
            return probs[:, ::-1]

    kind = Kind("backwards", (), lambda owner: Backwards(), lambda victim: "turns", both)
    monkeypatch.setitem(DEFENCES, kind.name, kind)
    config = config_of(labels, defence="backwards", weights="embedded:digits-lenet5.safetensors")
    summary = extraction.train_and_evaluate(config, tmp_path)
    assert summary["defence"] == "turns"
    assert summary["victim_accuracy"] == 0.988
    assert summary["defended_victim_accuracy"] < 0.1


@pytest.mark.slow
def test_a_run_says_which_victim_it_means_and_is_no_other_run(tmp_path, capsys):
    weights = "embedded:digits-lenet5.safetensors"
    config = config_of(defence="noise", noise_scale=0.4, weights=weights)
    summary = extraction.train_and_evaluate(config, tmp_path)
    assert summary["defence"] == "noise of scale 0.4, the same for the same image"
    assert summary["victim_accuracy"] == 0.988 > summary["defended_victim_accuracy"] > 0.7
    said = capsys.readouterr().out
    behind = f"{summary['defended_victim_accuracy']:.4f}"
    assert f"victim 0.9880, behind its defence {behind}\n" in said
    assert "behind a defence: noise of scale 0.4" in said
    assert "of the victim's 0.9880 without its defence" in said
    assert f"its price  the victim has {behind} behind it" in said
    config.victim.noise_scale = 0.3
    with pytest.raises(UserError, match=r"config\.victim\.noise_scale: 0\.4, now 0\.3"):
        extraction.train_and_evaluate(config, tmp_path)
    without = extraction.train_and_evaluate(config_of(weights=weights), tmp_path / "without")
    assert without["defence"] is without["defended_victim_accuracy"] is None
    assert "defence" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("defence", ["noise", "misinformation"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(defence, tmp_path, monkeypatch):
    config = config_of(defence=defence, weights="embedded:digits-lenet5.safetensors")
    whole = extraction.train_and_evaluate(config, tmp_path / "whole")
    look = observer.Observer._look

    def look_and_stop(self, happened, state, spent):
        signal.raise_signal(signal.SIGTERM)
        return look(self, happened, state, spent)

    monkeypatch.setattr(observer.Observer, "_look", look_and_stop)
    with pytest.raises(Stopped):
        extraction.train_and_evaluate(config, tmp_path / "parted")
    monkeypatch.undo()
    parted = extraction.train_and_evaluate(config, tmp_path / "parted")
    assert parted["clones_sha256"] == whole["clones_sha256"]


ENDPOINT = '''
"""The class of an image is its brightness; every image is counted in a file."""
import numpy as np

def probs(images):
    with open("count", "ab", buffering=0) as file:
        file.write(b"." * len(images))
    level = images.reshape(len(images), -1).mean(axis=1) / 25.6
    answers = np.exp(-np.square(level[:, None] - np.arange(10)))
    return answers / answers.sum(axis=1, keepdims=True)

def labels(images):
    return probs(images).argmax(axis=1)
'''


@pytest.fixture
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "shiny.py").write_text(ENDPOINT)
    yield
    sys.modules.pop("shiny", None)


@pytest.mark.parametrize(
    ("labels", "changes"),
    [
        pytest.param("soft", {"defence": "round", "decimals": 1}, marks=pytest.mark.slow),
        ("hard", {"defence": "noise", "noise_scale": 0.5}),
    ],
)
@pytest.mark.usefixtures("_here")
def test_an_endpoint_is_asked_once_more_for_its_owner_beside_the_budget(labels, changes, tmp_path):
    config = config_of(labels, weights="", endpoint="python:shiny:probs", **changes)
    summary = extraction.train_and_evaluate(config, tmp_path / "w")
    assert summary["evaluation_queries"] == 1000
    counted = (tmp_path / "count").stat().st_size
    assert counted == summary["queries"] + 1000
    if labels == "hard":
        assert summary["defended_victim_accuracy"] != summary["victim_accuracy"]
    test = datasets.load("digits", "test")
    right = sys.modules["shiny"].labels(test.images) == test.labels
    assert summary["victim_accuracy"] == right.mean()
    (tmp_path / "count").write_bytes(b"." * counted)
    config.query_budget += 16
    again = extraction.train_and_evaluate(config, tmp_path / "w", extend=True)
    assert again["evaluation_queries"] == 1000
    assert (tmp_path / "count").stat().st_size == counted + 16


@pytest.mark.usefixtures("_here")
def test_labels_of_an_endpoint_can_only_be_defended_as_such(tmp_path):
    config = config_of("hard", weights="", endpoint="python:shiny:labels", defence="noise")
    with pytest.raises(UserError, match=r"defence noise makes others.*defence=label_only or none"):
        extraction.train_and_evaluate(config, tmp_path / "w")
    config.victim.defence = "label_only"
    summary = extraction.train_and_evaluate(config, tmp_path / "w")
    assert summary["defended_victim_accuracy"] == summary["victim_accuracy"]


def test_an_endpoint_that_names_few_classes_may_have_a_defence_too():
    config = config_of(
        weights="", endpoint="python:shiny:probs", defence="round", decimals=2, top_k=3
    )
    programs.resolve(config)
