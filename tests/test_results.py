"""What is computed from finished runs, and which runs are still to be made."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
from conftest import ROOT
from made_up import make_result, write_result

from disguide_jax.errors import UserError
from disguide_jax.study import flops, intervals, results, tables
from disguide_jax.study.results import Cell


def test_interval_is_students_t():
    """Five values with a standard deviation of sqrt(2.5); t is 2.776 with four degrees."""
    mean, half = intervals.mean_and_interval([1, 2, 3, 4, 5])
    assert mean == 3
    np.testing.assert_allclose(half, 2.7764451 * math.sqrt(2.5) / math.sqrt(5), rtol=1e-6)
    assert tables.format_interval([0.94, 0.95]) == "94.50 ± 6.35"
    assert tables.format_interval([0.94]) == "94.00"
    assert tables.format_interval([]) == "/"


def test_queries_to_an_accuracy_are_interpolated_between_evaluations():
    result = make_result([0.2, 0.6, 0.5, 0.8])
    assert result.queries_to(0.2) == 100
    assert result.queries_to(0.4) == 150
    assert result.queries_to(0.1) == 50
    assert result.queries_to(0.7) == pytest.approx(300 + 100 * 2 / 3)
    assert result.queries_to(0.81) is None
    runs = [result, make_result([0.1, 0.2])]
    assert tables.format_queries_to(runs, 0.4) == "150 (1 of 2 runs)"
    assert tables.format_reduction(runs, 0.4, 600) == "75.00 (1 of 2 runs)"
    assert tables.format_reduction([], 0.4, 600) == "/"


def test_a_curve_has_the_lines_that_were_evaluated():
    result = make_result([0.2, 0.6])
    result.lines.insert(1, {"queries": 150, "gen/loss": 2.0})
    queries, values = result.curve()
    assert (queries.tolist(), values.tolist()) == ([100, 200], [0.2, 0.6])


def test_a_cell_knows_its_configuration_and_command():
    cell = Cell("digits", "digits_soft", (("replay.size", 500), ("clones.soft_loss", "kl")))
    loaded = cell.load(seed=3)
    assert (loaded.seed, loaded.replay.size, loaded.clones.soft_loss) == (3, 500, "kl")
    assert str(cell.folder) == "digits/digits_soft,replay.size=500,clones.soft_loss=kl"
    assert cell.arguments(3)[1:] == [
        "--config.seed=3",
        "--config.replay.size=500",
        "--config.clones.soft_loss=kl",
    ]


def test_only_what_has_not_finished_is_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    cells = [Cell("digits", "digits_soft"), Cell("digits", "digits_hard", (("num_clones", 3),))]
    write_result(tmp_path, cells[0], 0)
    options = {"results": tmp_path, "workdirs": tmp_path / "w", "least_hours": float}
    results.run_missing(cells, range(2), dry_run=True, **options)
    commands = capsys.readouterr().out.splitlines()
    start = "python -m disguide_jax.main --config=configs/"
    assert [command.removeprefix(start).split(" --workdir")[0] for command in commands] == [
        "digits_hard.py --config.seed=0 --config.num_clones=3",
        "digits_soft.py --config.seed=1",
        "digits_hard.py --config.seed=1 --config.num_clones=3",
    ]
    results.run_missing(cells, range(2), dry_run=True, seeds_together=True, **options)
    commands = capsys.readouterr().out.splitlines()
    assert [command.removeprefix(start) for command in commands] == [
        "digits_hard.py --config.seeds=0,1 --config.num_clones=3 "
        f"--workdir={tmp_path}/w/digits/digits_hard,num_clones=3",
        f"digits_soft.py --config.seed=1 --workdir={tmp_path}/w/digits/digits_soft/seed1",
    ]


def test_the_time_that_is_left_is_told_by_earlier_runs_or_by_flops(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(results, "_command", lambda *_: ["false"])
    known, new = Cell("digits", "digits_soft"), Cell("digits", "digits_maze")
    result = write_result(tmp_path / "results", known, 0)
    summary = json.loads((result / "summary.json").read_text())
    summary |= {"wall_seconds": 360.0, "queries": known.load(0).query_budget}
    (result / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match="The same command again continues"):
        results.run_missing(
            [known, new],
            [0, 1],
            results=tmp_path / "results",
            workdirs=tmp_path,
            least_hours=lambda config: config.batch_size / 8,
        )
    assert capsys.readouterr().out == (
        "1 of 4 runs have finished; the rest takes about 0.1 h one after the other; 2 of a kind "
        "that has not run yet take at least 4 h: their FLOPs, as fast as matrix products are on "
        "this machine\n"
    )


@pytest.mark.parametrize(
    ("all_finished", "said"), [(True, "2 of 2 runs have finished\n"), (False, "")]
)
def test_what_ends_while_it_is_looked_after_is_told_last(tmp_path, capsys, all_finished, said):
    """Of a cluster's runs, the last may end between the count and the look at the queue."""
    cell = Cell("digits", "digits_soft")
    write_result(tmp_path / "results", cell, 0)
    options = {"results": tmp_path / "results", "workdirs": tmp_path, "least_hours": lambda _: 0.0}
    found = results.run_missing(
        [cell], [0, 1], launcher=lambda tasks, dry_run: all_finished, **options
    )
    assert found == all_finished
    first, last = capsys.readouterr().out.split("\n", 1)
    assert first.startswith("1 of 2 runs have finished; ")
    assert last == said


def test_results_of_another_configuration_are_refused(tmp_path):
    cell = Cell("digits", "digits_soft")
    target = write_result(tmp_path, cell, 0)
    assert results.load(tmp_path, cell, 0).summary["soft_vote_accuracy"] == 0.8
    assert results.load(tmp_path, cell, 1) is None
    summary = json.loads((target / "summary.json").read_text())
    summary["config"]["batch_size"] += 1
    (target / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match=r"config\.batch_size"):
        results.load(tmp_path, cell, 0)
    (target / "summary.json").write_text("{")
    with pytest.raises(UserError, match="seed0 cannot be read"):
        results.load(tmp_path, cell, 0)


@pytest.mark.slow
def test_missing_runs_are_run_and_failed_ones_named(tmp_path, capsys):
    good = Cell("digits", "digits_soft:smoke")
    bad = good._replace(overrides=(("batch_size", 0),))
    options = {
        "results": tmp_path / "results",
        "workdirs": tmp_path / "w",
        "least_hours": flops.least_extraction_hours,
    }
    with pytest.raises(UserError, match=r"seed 0: status 2: .*config.batch_size is 0"):
        results.run_missing([bad], [0], **options)
    results.run_missing([good], [0], **options)
    result = results.load(tmp_path / "results", good, 0)
    assert result.summary["queries"] == 40
    assert "digits_soft:smoke, seed 0: soft vote" in capsys.readouterr().out
    assert (tmp_path / "results" / good.folder / "seed0/samples.png").exists()
    results.run_missing([good], [0], **options)
    assert "1 of 1 runs have finished\n" in capsys.readouterr().out

    (tmp_path / "w" / good.folder / "seed2").mkdir(parents=True)
    (tmp_path / "w" / good.folder / "seed2/config.json").write_text("{")
    with pytest.raises(UserError, match=r"seeds 1, 2: status 2: "):
        results.run_missing([good], range(3), seeds_together=True, **options)
    shutil.rmtree(tmp_path / "w" / good.folder / "seed2")
    assert results.run_missing([good], range(3), seeds_together=True, **options)
    assert [results.load(tmp_path / "results", good, seed) is None for seed in range(3)] == [
        False,
        False,
        False,
    ]


def test_tables_and_figures_are_equal_for_equal_results(tmp_path):
    text = tables.write_table(tmp_path / "a", ["x", "y"], [[1, "2 ± 1"]])
    assert text == "| x | y |\n| --- | --- |\n| 1 | 2 ± 1 |\n"
    with (tmp_path / "a.csv").open() as file:
        assert list(csv.reader(file)) == [["x", "y"], ["1", "2 ± 1"]]
    contents = []
    for name in ("one", "two"):
        path = tmp_path / name / "figure"
        tables.accuracy_figure(path, {"ours": [make_result([0.2, 0.6]), make_result([0.3])]})
        contents.append([path.with_suffix(s).read_bytes() for s in (".png", ".svg")])
    assert contents[0] == contents[1]
