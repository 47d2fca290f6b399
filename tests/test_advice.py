"""What a run says at its end of clones that have stopped learning."""

import itertools
import math

import pytest
from conftest import ROOT

from disguide_jax.files.workdir import read_log
from disguide_jax.methods import METHODS
from disguide_jax.run import advice, extraction
from disguide_jax.study.results import Cell


def lines(*, losses=(1.0, 0.9, 0.6, 0.5), rates=(0.1, 0.1, 0.03, 0.03), shares=(0.1,) * 10):
    return [
        {"clones/loss": loss, "clones/learning_rate": rate, "victim/class_share": list(shares)}
        for loss, rate in zip(losses, rates, strict=True)
    ]


def test_a_run_that_learns_gets_no_advice():
    assert advice.advise(lines()) == []
    assert advice.advise([]) == []


def test_classes_that_are_hardly_named_are_listed_with_their_shares():
    (hint,) = advice.advise(lines(shares=(0.02, 0.98, *[0.0] * 2)))
    assert "0 (2.0%), 2 (0.0%), 3 (0.0%):" in hint
    (hint,) = advice.advise(lines(shares=(1.0, *[0.0] * 9)))
    assert "5 (0.0%) and 4 more:" in hint
    assert advice.advise(lines(shares=(0.07, 0.93))) != []
    assert advice.advise(lines(shares=(0.13, 0.87))) == []


def test_the_shares_are_those_of_the_whole_run():
    early = lines(shares=(0.0, 1.0))[:2]
    late = lines(shares=(0.5, 0.5))[2:]
    assert advice.advise(early + late) == []


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ((1.0, 1.0, 0.95, 0.95), "fell by only 5%"),
        ((1.0, 1.0, 1.0, 1.2), "rose by 10%"),
        ((1.0, 1.0, 0.85, 0.85), None),
        ((0.0, 0.0, 0.0, 0.0), None),
    ],
)
def test_a_loss_that_stays_when_the_rate_falls_is_told(losses, said):
    hints = advice.advise(lines(losses=losses))
    assert [said in hint for hint in hints] == ([True] if said else [])
    replayed = [
        line | {"clones/replay_loss": line["clones/loss"], "clones/loss": 9.0}
        for line in lines(losses=losses)
    ]
    assert advice.advise(replayed) == hints, "the replayed loss tells more, where there is one"


def test_without_a_fall_of_the_rate_or_lines_on_both_sides_nothing_is_said_of_the_loss():
    flat = (1.0,) * 4
    assert advice.advise(lines(losses=flat, rates=(0.1,) * 4)) == []
    assert advice.advise(lines(losses=flat, rates=(0.1, 0.03, 0.03, 0.03))) == []
    assert advice.advise(lines(losses=flat, rates=(0.1, 0.09, 0.08, 0.07))) == [], "a cosine"


@pytest.mark.parametrize("num_lines", [4, 7, 31])
def test_nothing_is_said_of_a_rate_that_falls_along_a_cosine(num_lines):
    rates = [0.03 * (1 + math.cos(math.pi * i / num_lines)) / 2 for i in range(1, num_lines + 1)]
    assert any(after < before / 2 for before, after in itertools.pairwise(rates[:-1]))
    assert advice.advise(lines(losses=(1.0,) * num_lines, rates=rates)) == []


@pytest.mark.parametrize(
    ("method", "unseen", "unmoved"),
    [
        (
            "disguide",
            "send more, lower clones.learning_rate, raise generator.diversity_weight or raise "
            "disguide.shapes",
            "raise clones.learning_rate, raise replay.batches or take a larger clones.model",
        ),
        (
            "dfme",
            "send more or lower clones.learning_rate",
            "raise clones.learning_rate or take a larger clones.model",
        ),
        (
            "maze",
            "send more or lower clones.learning_rate",
            "raise clones.learning_rate, raise replay.batches or take a larger clones.model",
        ),
    ],
)
def test_what_is_advised_is_of_use_to_the_method(method, unseen, unmoved):
    log = lines(losses=(1.0,) * 4, shares=(1.0, 0.0))
    first, second = advice.advise(log, METHODS[method].ignores)
    assert first.endswith(f"not learnt; {unseen}")
    assert second.endswith(f"too small; {unmoved}")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_two_ways_at_least(method):
    log = lines(losses=(1.0,) * 4, shares=(1.0, 0.0))
    for hint in advice.advise(log, METHODS[method].ignores):
        assert not hint.split("; ")[-1].startswith(" or ")


@pytest.mark.parametrize(("method", "number"), [("digits_hard", 0), ("digits_dfme", 5)])
def test_of_the_kept_runs_those_of_dfme_hardly_saw_a_1(method, number):
    hints = [
        hint
        for folder in sorted((ROOT / "results/digits" / method).glob("seed*"))
        for hint in advice.advise(read_log(folder))
        if " 1 (" in hint
    ]
    assert len(hints) == number


@pytest.mark.parametrize(("guard", "number"), [("warn", 1), ("off", 0)])
def test_a_run_ends_with_its_hints_unless_the_guard_is_off(
    tmp_path, capsys, monkeypatch, guard, number
):
    config = Cell("", "digits_hard:smoke", (("guard", guard),)).load(seed=0)
    monkeypatch.setattr(advice, "LEAST_SHARE", 10.0)
    monkeypatch.setattr(advice, "LEAST_FALL", -10.0)
    extraction.train_and_evaluate(config, tmp_path / "w")
    assert capsys.readouterr().out.count("\nhint ") == number
