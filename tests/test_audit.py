"""Audits: which cells there are, what is measured of them, and the real command to its report."""

import copy
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from flax import struct

from disguide_jax import audit as program
from disguide_jax import shipped
from disguide_jax.audit_config import TransferConfig
from disguide_jax.core import adversarial, pixels
from disguide_jax.errors import UserError
from disguide_jax.files import datasets, transfer
from disguide_jax.run import asked, compiled, extraction, watching
from disguide_jax.run import program as programs
from disguide_jax.settings import set_value
from disguide_jax.study.auditing import audit, bought, cells, measures, runs
from disguide_jax.study.auditing.cells import Cell
from disguide_jax.victims.defences import DEFENCES

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("audit_*.py"))


def config_of(name="audit_digits", variant="smoke", **changes):
    config = shipped.load(f"{name}:{variant}")
    for key, value in changes.items():
        set_value(config, key.replace("__", "."), value)
    return config


# Adversarial examples.

IMAGES = jnp.array([-1.0, -0.95, 0.0, 0.5, 0.95, 1.0]).reshape(1, 6, 1, 1)
SLOPES = jnp.array([1.0, -2.0, 0.0, -1e-6, 3.0, -1.0]).reshape(1, 6, 1, 1)


def linear(images):
    return jax.grad(lambda x: (SLOPES * x).sum())(images)


def test_fgsm_goes_by_epsilon_up_a_linear_loss_and_stays_in_the_range_of_pixels():
    found = adversarial.fgsm(linear, IMAGES, epsilon=0.1)
    # 0.1 of pixels in [0, 1] is 0.2 of images in [-1, 1].
    np.testing.assert_allclose(found.ravel(), [-0.8, -1.0, 0.0, 0.3, 1.0, 0.8], atol=1e-6)


def test_pgd_ends_in_the_corner_of_a_linear_loss_from_wherever_it_starts():
    for seed in range(3):
        key = jax.random.key(seed)
        found = adversarial.pgd(linear, IMAGES, key, epsilon=0.1, steps=7)
        expected = np.array([-0.8, -1.0, np.nan, 0.3, 1.0, 0.8])
        moved = ~np.isnan(expected)
        np.testing.assert_allclose(found.ravel()[moved], expected[moved], atol=1e-6)
        assert abs(found.ravel()[2]) <= 0.2 + 1e-6


def test_pgd_keeps_its_bounds_where_one_step_is_longer_than_they_are():
    images = jax.random.uniform(jax.random.key(1), (4, 5, 5, 3), minval=-1, maxval=1)
    start = adversarial.pgd(jnp.zeros_like, images, jax.random.key(2), epsilon=0.1, steps=1)
    assert 0.1 < abs(start - images).max() <= 0.2 + 1e-6, "the random start alone"
    found = adversarial.pgd(
        lambda x: jnp.cos(9 * x), images, jax.random.key(2), epsilon=0.1, steps=1
    )
    assert abs(found - images).max() <= 0.2 + 1e-6
    assert abs(found).max() <= 1
    assert abs(found - start).max() > 0.1


class Bright(struct.PyTreeNode):
    """Clones that take bright images for class 1, and surer of it the brighter."""

    slope: float

    def __call__(self, images):
        level = self.slope * images.mean(axis=(1, 2, 3))
        return jax.nn.softmax(jnp.stack([-level, level], axis=-1))


class Endpoint:
    """A victim of bytes, to which images above a threshold are of class 1; it counts them."""

    def __init__(self, threshold):
        self.threshold, self.sent = threshold, []

    def ask(self, images, count):
        del count
        assert images.dtype == np.uint8
        self.sent.append(len(images))
        return (images.mean(axis=(1, 2, 3)) > self.threshold).astype(np.int32)


def test_transfer_counts_by_hand():
    levels = np.array([90, 140, 120, 135, 250, 0], np.uint8)
    images = np.tile(levels[:, None, None, None], (1, 4, 4, 1))
    known = measures.Tested(
        images, labels=np.array([0, 1, 0, 0, 1, 0]), victim_labels=np.array([0, 1, 0, 1, 1, 0])
    )
    victim, how = Endpoint(threshold=127), TransferConfig(epsilon=0.1, steps=5, images=200)
    found = measures.transfer(Bright(3.0), victim, known, how)
    # The victim is wrong about the fourth; 25.5 levels change the second and the third.
    expected = {"epsilon": 0.1, "success": 2 / 5, "images": 5}
    assert found == {"fgsm": expected, "pgd": expected}
    assert victim.sent == [5, 5], "of every image one by each attack"
    how.images = 2
    assert measures.transfer(Bright(3.0), victim, known, how)["pgd"]["success"] == 1 / 2
    wrong = measures.transfer(Bright(-3.0), victim, known, how)
    assert wrong["fgsm"]["success"] == 0, "what these clones take for worse is better"
    assert measures.transfer(Bright(3.0), victim, known._replace(labels=None), how) is None


# What is measured.


def test_agreement_where_the_victim_is_right_by_hand():
    known = measures.Tested(
        np.zeros((5, 1, 1, 1)), np.array([0, 1, 2, 3, 4]), victim_labels=np.array([0, 1, 2, 0, 0])
    )
    named = np.array([0, 2, 2, 3, 0])
    assert measures.agreement(named, known) == 2 / 3
    assert measures.agreement(named, known._replace(labels=None)) is None
    assert measures.agreement(named, known._replace(labels=np.full(5, 9))) is None


def test_queries_to_shares_of_the_victims_accuracy_by_hand():
    curve = [[100, 0.5], [200, 0.72], [300, 0.69], [400, 0.8], [500, 0.85]]
    assert measures.queries_to(curve, 0.9) == {"0.8": 200, "0.9": 500, "0.95": None}
    assert measures.queries_to(curve, None) == {"0.8": None, "0.9": None, "0.95": None}


# Cells.


def test_every_defence_stands_against_the_first_method_and_against_no_other():
    config = config_of(attacks=("random", "dfme", "disguide"), defences=("top_k", "noise"))
    config.adaptive_losses = ()
    assert cells.cells_of(config) == [
        *(Cell(attack, "soft") for attack in config.attacks),
        *(Cell(attack, "hard") for attack in config.attacks),
        *(Cell("dfme", answers, "top_k") for answers in ("soft", "hard")),
        *(Cell("dfme", answers, "noise") for answers in ("soft", "hard")),
    ]
    assert cells.cells_of(config_of(attacks=("random",), answers=("hard",))) == [
        Cell("random", "hard")
    ]


def test_another_loss_is_tried_on_soft_answers_wherever_it_is_another():
    config = config_of(attacks=("disguide", "random"), defences=("noise", "label_only"))
    config.adaptive_losses = ("l1", "cross_entropy", "kl")  # l1 is the recipe's
    adapted = [cell for cell in cells.cells_of(config) if cell.loss]
    assert adapted == [
        Cell("disguide", "soft", defence, loss)
        for defence in ("", "noise", "label_only")
        for loss in ("cross_entropy", "kl")
    ]
    assert str(adapted[2]) == "disguide with cross_entropy, soft answers behind noise"
    plain = cells.config_of(config, Cell("disguide", "soft", "noise"))
    other = cells.config_of(config, Cell("disguide", "soft", "noise", "kl"))
    assert (plain.clones.soft_loss, other.clones.soft_loss) == ("l1", "kl")
    other.clones.soft_loss, other.name = "l1", plain.name
    assert other == plain
    config.recipes[0].clones.top_classes = 3  # of l1 alone
    other = cells.config_of(config, Cell("disguide", "soft", "", "cross_entropy"))
    assert other.clones.top_classes == 0
    config.answers = ("hard",)
    assert not any(cell.loss for cell in cells.cells_of(config))


@pytest.mark.parametrize("budget", [40, 100])
def test_a_replay_holds_no_more_than_the_budget(budget):
    config = config_of(query_budget=budget)
    config.recipes[0].replay.size = 64
    found = cells.config_of(config, Cell("disguide", "soft"))
    assert found.replay.size == min(budget, 64)


@pytest.mark.parametrize("variant", ["", "smoke"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_cells_that_cannot_be_say_why_and_all_others_resolve(name, variant):
    config = config_of(name, variant)
    cells.validate(config)
    reasons = {}
    for cell in cells.cells_of(config):
        try:
            found = cells.config_of(config, cell)
        except UserError as error:
            reasons[cell] = str(error)
        else:
            assert found.query_budget == config.query_budget
            assert found.victim.defence == cell.defence
            assert (found.labels, found.seeds) == (cell.answers, config.seeds)
    expected = {
        Cell("disguide", "hard", name): "is the same as without it"
        for name in ("round", "top_k", "high_confidence")
    }
    expected |= {
        Cell("disguide", "soft", "label_only"): "answers with labels alone",
        Cell("disguide", "soft", "label_only", "cross_entropy"): "answers with labels alone",
        Cell("dfme", "hard"): "dfme needs 'soft'",
    }
    assert reasons.keys() == expected.keys() & set(cells.cells_of(config))
    for cell, reason in reasons.items():
        assert expected[cell] in reason


def test_a_cell_has_the_numbers_of_its_own_defence_alone():
    config = config_of(victim__top_k=3, victim__decimals=2, victim__noise_scale=0.5)
    victim = cells.config_of(config, Cell("disguide", "soft", "noise")).victim
    assert (victim.top_k, victim.decimals, victim.noise_scale) == (0, 0, 0.5)
    victim = cells.config_of(config, Cell("disguide", "soft", "top_k")).victim
    assert (victim.top_k, victim.decimals, victim.noise_scale) == (3, 0, 0.1)
    assert config.victim.noise_scale == 0.5


def test_what_was_not_tested_is_said():
    config = config_of("audit_digits", "")
    said = " ".join(cells.not_tested(config))
    assert "maze, dfms." in said
    assert "Defences that were not tried" not in said
    assert "against disguide alone" in said
    assert "adapt to a defence other than by learning with cross_entropy or hide" in said
    assert "dual_students has no settings of its own for hard answers" in said
    assert "dfme has no settings" not in said, "it cannot have hard answers"
    config = config_of(dataset="", detector_queries=0, answers=("soft",), defences=("noise",))
    said = " ".join(cells.not_tested(config))
    for words in ("no accuracy", "Hard answers were not tried", "No detector", "top_k"):
        assert words in said


# Images that are labelled first.


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("kind", list(bought.KINDS))
def test_as_many_images_are_labelled_as_the_budget_pays_for(tmp_path, kind, labels):
    config = cells.config_of(config_of(), Cell("disguide", labels))
    config.seeds, config.seed = (), 3
    offline = bought.buy(config, kind, tmp_path)
    assert bought.received(tmp_path) == config.query_budget == 163
    found = transfer.load(offline.offline.queries)
    assert len(found.images) == 163
    victim, _, _ = asked.load(copy.deepcopy(config))
    np.testing.assert_allclose(found.answers, victim(pixels.decode(found.images)), rtol=1e-5)
    assert found.answers.shape == ((163, 10) if labels == "soft" else (163,))
    if kind == "knockoff":
        real = datasets.load("digits", "train").images
        rows = {image.tobytes() for image in real}
        assert all(image.tobytes() in rows for image in found.images)
    if kind == "random":
        assert 120 < found.images.mean() < 135
        assert (found.images.min(), found.images.max()) == (0, 255)
    # As many updates as the method makes: 20 rounds of 2, and at most a pass more.
    stage = programs.stages_of(programs.resolve(offline))[0]
    assert 40 <= stage.num_rounds * stage.clone_updates <= 40 + 163 / 8
    again = bought.buy(config, kind, tmp_path)
    assert again == offline
    assert bought.received(tmp_path) == 163, "nothing is paid for twice"
    config.seed = 4
    other = transfer.load(bought.buy(config, kind, tmp_path / "other").offline.queries)
    assert not np.array_equal(other.images, found.images)


def test_of_too_few_real_images_there_is_no_more_than_there_are(tmp_path):
    config = cells.config_of(config_of(query_budget=2_000), Cell("disguide", "hard"))
    config.seeds = ()
    offline = bought.buy(config, "knockoff", tmp_path)
    assert bought.received(tmp_path) == transfer.num_images(offline.offline.queries) == 1_297
    resolved = programs.resolve(offline)
    assert resolved.replay == offline.replay, "or a run that continues would be another"
    rounds = programs.stages_of(resolved)[0].num_rounds
    assert 500 <= rounds <= 500 + 1_297 / 8


# The command.


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the program as its command line would; returns status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run(config, *arguments):
        argv = ["audit", f"--config={ROOT / 'configs' / config}", "--workdir=w", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exit_:
            program.run()
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return run


MISTAKES = {
    "--config.attacks=disguide,theft": "config.attacks has 'theft'; those there are: disguide, "
    "dual_students, dfme, random, shapes, knockoff",
    "--config.attacks=": "config.attacks is empty",
    "--config.attacks=random,random": "different names",
    "--config.defences=moat": "config.defences has 'moat'; those there are: round, top_k",
    "--config.answers=medium": "config.answers",
    "--config.adaptive_losses=kl,l2": "config.adaptive_losses is ('kl', 'l2'); it must be some of",
    "--config.price_per_1000=-1": "config.price_per_1000 is -1.0; it must be at least 0",
    "--config.queries_per_second=-0.5": "config.queries_per_second is -0.5",
    "--config.seeds=1,1": "config.seeds is (1, 1); it must be different whole numbers",
    "--config.seeds=()": "config.seeds is ()",
    "--config.query_budget=0": "config.query_budget is 0",
    "--config.transfer.epsilon=2": "config.transfer.epsilon is 2",
    "--config.victim.defence=noise": "name it in config.defences",
    "--config.victim.input_space=post-transform": "config.victim.input_space",
    "--config.dataset=": "no run has ended",
    "--config.victim.weights=none.pt": "none.pt",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_message(run, tmp_path, mistake):
    if "dataset" in mistake or "weights" in mistake:
        extra = ("--config.attacks=disguide", "--config.defences=", "--config.answers=soft")
    else:
        extra = ()
    status, _, err = run("audit_digits.py:smoke", *extra, mistake)
    assert status == 2
    assert MISTAKES[mistake] in err
    assert "Traceback" not in err
    assert not (tmp_path / "w/report.json").exists()


QUICK = (
    "--config.answers=soft",
    "--config.attacks=disguide,random",
    "--config.adaptive_losses=",
)


def test_a_bought_run_that_has_ended_is_found_so(tmp_path, capsys):
    config = config_of(attacks=("knockoff",), seeds=(0,), query_budget=40)
    for _ in range(2):
        played = runs.play(config, Cell("knockoff", "soft"), tmp_path, compiled.Shared())
        assert (played.state, played.why) == ("done", None)
    assert "is finished" in (tmp_path / "output.txt").read_text()
    assert played.seeds == (0,)
    assert capsys.readouterr().out == "", "a run speaks to output.txt"


def test_an_audit_compiles_and_calibrates_once_for_all_defences(run, tmp_path, monkeypatch):
    called = []
    for module, name in ((compiled, "compiled"), (watching, "prepare")):
        function = getattr(module, name)

        def counted(*arguments, function=function, name=name, **options):
            called.append(name)
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, counted)
    cut = (*QUICK[:1], "--config.attacks=disguide", "--config.adaptive_losses=")
    status, *_ = run("audit_digits.py:smoke", *cut, "--config.defences=noise,round")
    assert status == 0
    made = json.loads((tmp_path / "w/report.json").read_text())
    assert [cell["defence"] for cell in made["cells"] if cell["runs"]] == ["", "noise", "round"]
    assert all(cell["detectors"] for cell in made["cells"])
    assert sorted(called) == ["compiled", "prepare"]


@pytest.mark.parametrize("when", ["before its first round", "after its last round"])
def test_an_audit_that_is_told_to_stop_begins_no_other_cell(run, tmp_path, monkeypatch, when):
    where = (programs, "build") if when == "before its first round" else (extraction, "conclude")
    function = getattr(*where)

    def told(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments)

    monkeypatch.setattr(*where, told)
    before = signal.getsignal(signal.SIGTERM)
    cut = ("--config.attacks=disguide,dfme", "--config.defences=", "--config.seeds=0")
    status, out, err = run("audit_digits.py:smoke", *cut, "--config.answers=soft")
    assert status == 128 + signal.SIGTERM
    assert "cell 1 of 3" in out
    assert "cell 2 of 3" not in out
    assert "Stopping once this is saved" in out
    assert "Stopped after" in out + err
    assert signal.getsignal(signal.SIGTERM) == before
    ended = (tmp_path / "w/cells/disguide-soft/seed0/summary.json").exists()
    assert ended == (when == "after its last round")


@pytest.mark.slow
def test_a_killed_audit_goes_on_and_a_cell_that_fails_leaves_the_others(run, tmp_path):
    cut = (*QUICK, "--config.defences=misinformation,label_only")
    cut = (*cut, "--config.victim.misinformation_model=nosuch")
    command = [sys.executable, "-m", "disguide_jax.audit", "--workdir=w"]
    command += [f"--config={ROOT}/configs/audit_digits.py:smoke", *cut]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = tmp_path / "w/cells/disguide-soft/seed0/summary.json"
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=-3) as child:
        while not first.exists() and child.poll() is None:
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    written = first.stat().st_mtime_ns
    assert not (tmp_path / "w/report.json").exists()

    status, out, err = run("audit_digits.py:smoke", *cut)
    assert status == 0, err
    assert first.stat().st_mtime_ns == written, "a run that has ended is not run again"
    assert "cell 4 of 4" in out
    assert "failed: " in out
    report = json.loads((tmp_path / "w/report.json").read_text())
    assert (tmp_path / "w/report.html").exists()
    found = {(c["attack"], c["defence"]): c for c in report["cells"]}
    assert {key: cell["state"] for key, cell in found.items()} == {
        ("disguide", ""): "done",
        ("random", ""): "done",
        ("disguide", "misinformation"): "failed",
        ("disguide", "label_only"): "cannot",
    }
    assert "nosuch" in found["disguide", "misinformation"]["why"]
    assert found["disguide", "misinformation"]["runs"] == []
    assert "answers with labels alone" in found["disguide", "label_only"]["why"]
    for attack, queries, role in (("disguide", 160, "attack"), ("random", 163, "baseline")):
        cell = found[attack, ""]
        assert cell["role"] == role
        assert [one["seed"] for one in cell["runs"]] == [0, 1]
        for one in cell["runs"]:
            assert one["queries"] == one["curve"][-1][0] == queries
            assert one["accuracy"] == one["curve"][-1][1]
            assert 0 <= one["fidelity"] <= 1
            assert one["transfer"]["pgd"]["images"] == 8
            assert "--config.seeds=" in one["command"]
            workdir = tmp_path / f"w/cells/{attack}-soft/seed{one['seed']}"
            summary = json.loads((workdir / "summary.json").read_text())
            assert one["fidelity"] == summary["fidelity"]
        assert cell["samples"][0].startswith("iVBOR")
        assert cell["detectors"].keys() == {"prada", "label_histogram"}
        assert cell["detectors"]["prada"]["looked_at"] == 40
    assert report["defences"].keys() == {"misinformation", "label_only"}
    assert "nosuch" in report["defences"]["misinformation"]["why"]
    assert report["defences"]["label_only"]["change"] > 0
    assert report["false_alarms"]["prada"]["orders"] == 20
    assert report["victim"]["num_test_images"] == 500

    # Another price changes no run, another budget would.
    status, _, err = run("audit_digits.py:smoke", *cut, "--config.price_per_1000=7")
    assert status == 0, err
    again = json.loads((tmp_path / "w/report.json").read_text())
    assert again["price_per_1000"] == 7
    before = found["disguide", ""]["runs"]
    assert again["cells"][0]["runs"][0]["curve"] == before[0]["curve"]
    assert first.stat().st_mtime_ns == written
    status, _, err = run("audit_digits.py:smoke", *cut, "--config.query_budget=200")
    assert status == 2
    assert "config.query_budget" in err


VICTIM = """
import numpy as np

sent = []

def probs(images):
    sent.append(len(images))
    levels = images.reshape(len(images), -1).mean(axis=1) / 25.6
    answers = np.exp(-np.square(levels[:, None] - np.arange(10)))
    return answers / answers.sum(axis=1, keepdims=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["", "digits"])
def test_an_endpoint_is_asked_as_often_as_is_said(monkeypatch, tmp_path, dataset):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "audited.py").write_text(VICTIM)
    config = config_of(
        "audit_endpoint",
        attacks=("disguide", "shapes"),
        answers=("soft",),
        adaptive_losses=(),
        defences=("round",),
        seeds=(0,),
        dataset=dataset,
        victim__weights="",
        victim__model="",
        victim__endpoint="python:audited:probs",
    )
    if not dataset:
        config.victim.num_classes, config.victim.channels, config.victim.image_size = 10, 1, 32
    report = audit.run(config, tmp_path / "w", "command")
    import audited

    assert [cell["state"] for cell in report["cells"]] == ["done"] * 3, report["cells"]
    paid = sum(run["queries"] for cell in report["cells"] for run in cell["runs"])
    budget = config.query_budget
    assert all(budget - 8 < c["runs"][0]["queries"] <= budget for c in report["cells"])
    if dataset:
        # Test images: of each run, of the defended one again without, and for prices; then two
        # adversarial ones of each of 8 for every run.
        assert sum(audited.sent) == paid + (3 + 1 + 1) * 500 + 3 * 2 * 8
        assert report["false_alarms"]["prada"]["images"] == 250
        assert report["defences"]["round"]["change"] > 0
    else:
        run = report["cells"][0]["runs"][0]
        assert (run["accuracy"], run["agreement_where_right"], run["transfer"]) == (None,) * 3
        assert run["queries_to"] == {"0.8": None, "0.9": None, "0.95": None}
        assert report["victim"]["accuracy"] is None
        assert report["false_alarms"] == {}
        assert "config.dataset is empty" in report["defences"]["round"]["why"]
    sys.modules.pop("audited")


def test_all_defences_are_in_the_audit_of_digits():
    assert config_of("audit_digits", "").defences == tuple(DEFENCES)
