"""What scripts/reproduce.py runs, and what it makes of results."""

import csv
import functools
import itertools
import pathlib

import numpy as np
import pytest
from conftest import ROOT
from made_up import write_result
from PIL import Image

from disguide_jax.errors import UserError
from disguide_jax.study import launch, paper, reproduce, studies
from disguide_jax.study.results import Cell, load_all
from disguide_jax.study.studies import STUDIES


def arguments(study, scale, folder, **changes):
    options = {
        "study": study,
        "scale": scale,
        "seeds": 2,
        "only": [],
        "results": folder / "results",
        "workdirs": folder / "runs",
        "data_dir": "",
        "jobs": 1,
        "dry_run": False,
    }
    return options | changes


def finish(study, scale, folder):
    """Made-up results for all runs: cell i ends with 0.5 + i / 100, and 0.02 more for seed 1."""
    for i, cell in enumerate(dict.fromkeys(filter(None, STUDIES[study].cells[scale]))):
        for seed in range(2):
            end = 0.5 + i / 100 + 0.02 * seed
            write_result(folder / "results", cell, seed, (0.3, end + 0.1, end))


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("scale", ["full", "medium", "small"])
@pytest.mark.parametrize("study", STUDIES)
def test_every_study_is_made_from_results_alone(study, scale, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "prepare_victims", lambda *_, **__: True)
    finish(study, scale, tmp_path)
    reproduce.reproduce(**arguments(study, scale, tmp_path))
    cells = set(filter(None, STUDIES[study].cells[scale]))
    assert f"{2 * len(cells)} of {2 * len(cells)} runs have finished\n" in capsys.readouterr().out
    made = {path.name for path in (tmp_path / "results" / scale).iterdir() if path.is_file()}
    kinds = {"fig2": ["png", "svg"], "fig5": ["png"]}.get(study, ["md", "csv"])
    kinds += ["png", "svg"] if study in ("fig3", "fig4", "precision") else []
    assert made == {f"{study}.{kind}" for kind in kinds}
    if study != "fig5":
        for path in (tmp_path / "results" / scale).glob("*.png"):
            assert np.asarray(Image.open(path)).std() > 10


def test_table1_has_the_papers_numbers_beside_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "prepare_victims", lambda *_, **__: True)
    finish("table1", "full", tmp_path)
    reproduce.reproduce(**arguments("table1", "full", tmp_path))
    rows = read(tmp_path / "results/full/table1.csv")
    assert [row["technique"] for row in rows].count("DisGUIDE") == 5
    hard = rows[4]
    assert (hard["setting"], hard["queries"]) == ("CIFAR-10, hard", "8M")
    assert (hard["victim, paper, %"], hard["victim, ours, %"]) == ("95.54", "90.00 ± 0.00")
    assert hard["clone, paper, %"] == "87.93 ± 1.74"
    assert hard["clone, ours, %"] == "52.00 ± 12.71", "0.51 and 0.53, t of 12.7"
    assert hard["seeds"] == "2"
    assert (rows[0]["clone, paper, %"], rows[0]["clone, ours, %"]) == ("88.10", "/")
    assert hard["gain, paper, %"] == "3.42 ± 1.74"
    assert hard["gain, ours, %"] == "-32.51 ± 12.71", "over the 84.51 % that DFMS reported"
    soft = rows[2]
    assert soft["gain, ours, %"] == "-40.24 ± 12.71", "over the better of two earlier systems"
    assert rows[0]["gain, ours, %"] == "/"
    assert {row["gain, ours, %"] for row in rows[-1:]} == {"/"}, "nothing earlier to compare with"


@pytest.mark.parametrize("scale", ["medium", "small"])
def test_the_gain_is_over_the_mean_of_the_earlier_systems_runs(scale, tmp_path):
    finish("table1", scale, tmp_path)  # DFME 0.5 and 0.52, DisGUIDE 0.51 and 0.53, ...
    reproduce.reproduce(**arguments("table1", scale, tmp_path))
    rows = read(tmp_path / "results" / scale / "table1.csv")
    assert [row["gain, ours, %"] for row in rows] == ["/", "1.00 ± 12.71"] * 2


@pytest.mark.parametrize("present", ["DFME", "DisGUIDE"])
def test_where_only_one_system_has_run_nothing_is_compared(present, tmp_path):
    soft = paper.RACES["small"][0]
    write_result(tmp_path, {"DFME": soft.accuracy, "DisGUIDE": soft.cell}[present], 0)
    found = {cell: load_all(tmp_path, cell, [0]) for cell in STUDIES["table1"].cells["small"]}
    header, rows = studies.table1("small", found)
    assert {row[header.index("gain, ours, %")] for row in rows} == {"/"}
    header, rows = studies.table2("small", found)
    assert {row[header.index("reduction, ours, %")] for row in rows} == {"/"}


def test_the_maximum_and_single_clones_are_columns_of_their_own(tmp_path):
    finish("table5", "small", tmp_path)
    for study, column in {"table5": "maximum, ours, %", "table6": "individual, ours, %"}.items():
        reproduce.reproduce(**arguments(study, "small", tmp_path))
        first = read(tmp_path / f"results/small/{study}.csv")[0]
        assert first["clone, ours, %"].startswith("51.00 ±")
        assert first[column].startswith({"table5": "61.00 ±", "table6": "50.00 ±"}[study])


def test_queries_to_an_earlier_systems_accuracy_are_interpolated(tmp_path):
    finish("table2", "small", tmp_path)  # DisGUIDE 0.5 and 0.52, DFME 0.51 and 0.53, ...
    reproduce.reproduce(**arguments("table2", "small", tmp_path))
    first = read(tmp_path / "results/small/table2.csv")[0]
    assert first["its accuracy, %"] == "52.00"
    seeds = [100 + 100 * (0.52 - 0.3) / (end + 0.1 - 0.3) for end in (0.5, 0.52)]
    assert first["DisGUIDE's queries, ours"].startswith(f"{np.mean(seeds):.0f} ±")
    assert first["reduction, ours, %"].startswith(f"{100 - 100 * np.mean(seeds) / 48_000:.2f} ±")


def test_the_papers_reductions_are_of_its_queries():
    """Its intervals are not all: of 20M its soft ones are shares of 8M."""
    for race in paper.RACES["full"]:
        queries = float(race.paper.split("M")[0]) * 1e6
        reduction = float(race.paper_reduction.split()[0])
        assert reduction == pytest.approx(100 - 100 * queries / race.budget)


def test_the_full_studies_are_the_papers():
    sizes = {cell.load(0).replay.size for cell in paper.FIG3["full"].values()}
    assert sizes == {50_000, 100_000, 250_000, 500_000, 1_000_000}
    for cell in paper.FIG4["full"].values():
        assert cell.load(0).query_budget == 8_000_000
    batches = [cell.load(0).replay.batches for cell in paper.FIG4["full"].values()]
    assert batches == [1, 2, 3, 4, 5]
    spaces = [row.cell.load(0).victim.input_space for row in paper.TRANSFORM["full"]]
    assert spaces == ["pre-transform", "post-transform"]
    grays = [row.cell.load(0).generator.gray_every for row in paper.GRAYSCALE["full"]]
    assert grays == [0, 8, 0, 8]
    small = [row.cell.load(0) for row in paper.GRAYSCALE["small"]]
    assert [config.generator.gray_every for config in small] == [0, 8, 0, 8]
    assert {config.dataset for config in small} == {"colour_digits"}


def test_the_medium_studies_are_those_of_fashion_mnist_and_narrow_networks():
    sizes = {scale: paper.BASES[scale].replay_sizes for scale in ("full", "medium")}
    assert [size / 8_000_000 for size in sizes["full"]] == [s / 200_000 for s in sizes["medium"]]
    for name, study in STUDIES.items():
        dataset = "cifar10" if name in ("table3", "table4") else "fashion_mnist"
        for cell in study.cells["medium"]:
            config = cell.load(0)
            assert (config.dataset, config.query_budget) == (dataset, 200_000)
            shared = dataset == "fashion_mnist" and not cell.overrides
            assert cell.family == ("fashion" if shared else "medium"), "nothing is run twice"
    grays = [row.cell.load(0).generator.gray_every for row in paper.GRAYSCALE["medium"]]
    assert grays == [0, 8, 0, 8]
    for b, cell in paper.FIG4["medium"].items():
        replay = cell.load(0).replay
        assert (replay.size, replay.batches) == (25_000, b)
    assert paper.FIG4["medium"][3] == paper.FIG3["medium"][25_000]


def test_a_dry_run_of_medium_trains_the_narrow_victim_first(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for study, num_runs in {"table3": 4, "table4": 2}.items():
        options = {"dry_run": True, "seeds": 1, "data_dir": "images"}
        reproduce.reproduce(**arguments(study, "medium", tmp_path, **options))
        victim, *runs = capsys.readouterr().out.splitlines()
        assert victim.endswith("--config configs/victim_c10_r34_narrow.py --config.data_dir=images")
        assert len(runs) == num_runs
        assert all("_narrow.py" in run for run in runs)
    reproduce.reproduce(**arguments("table1", "medium", tmp_path, dry_run=True, seeds=1))
    names = ["fashion_dfme", "fashion_soft", "fashion_dfms", "fashion_hard"]
    lines = capsys.readouterr().out.splitlines()
    for name, line in zip(names, lines, strict=True):
        assert f"{name}.py" in line


def test_a_dry_run_lists_victims_and_runs_and_starts_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reproduce.reproduce(
        **arguments("table1", "full", tmp_path, dry_run=True, data_dir="images", seeds=1)
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "python scripts/train_victim.py --config configs/victim_c10_r34.py --config.data_dir=images"
    )
    assert len(lines) == 3 + 5
    assert all("--config.data_dir=images" in line for line in lines)
    assert not list(tmp_path.iterdir())


def test_a_victim_far_below_the_papers_stops_the_comparison(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = "victims/cifar10-resnet34_8x.safetensors"
    pathlib.Path("victims").mkdir()
    pathlib.Path(weights).touch()
    found = {"test_accuracy": "0.9454"}
    monkeypatch.setattr(reproduce.weights, "load_metadata", lambda _: found)
    prepare = functools.partial(
        reproduce.prepare_victims,
        {weights: "python none.py --config none"},
        launch.local(),
        folder=tmp_path,
        data_dir="",
        dry_run=False,
    )
    prepare()
    found["test_accuracy"] = "0.9453"
    with pytest.raises(UserError, match=r"94\.53 % .* 95\.54 %"):
        prepare()
    del found["test_accuracy"]
    with pytest.raises(UserError, match="does not say its accuracy"):
        prepare()
    reproduce.check_victim("victims/cifar10-resnet34_w16.safetensors")  # the paper has none


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="--only c10: table1 has c10_soft, c10_hard"):
        reproduce.reproduce(**arguments("table1", "full", tmp_path, only=["c10"]))
    with pytest.raises(UserError, match="--seeds is 0"):
        reproduce.reproduce(**arguments("table1", "small", tmp_path, seeds=0))


@pytest.mark.slow
def test_a_rehearsal_goes_from_no_victim_to_a_row(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    options = {"only": ["c100_hard"], "seeds": 1}
    reproduce.reproduce(**arguments("table1", "rehearsal", tmp_path, **options))
    assert (tmp_path / "victims/victim_c100_r18-smoke.safetensors").exists()
    rows = read(tmp_path / "results/rehearsal/table1.csv")
    ours = [row["setting"] for row in rows if row["seeds"] == "1"]
    assert ours == ["CIFAR-100, hard"]
    assert "of disk" in capfd.readouterr().out, "says what it needs"


def test_all_small_cells_exist_as_configurations():
    cells = itertools.chain(*(study.cells["small"] for study in STUDIES.values()))
    for cell in filter(None, cells):
        assert (ROOT / "configs" / f"{cell.config}.py").exists()
        assert "digits" in cell.load(0).dataset
        assert Cell(*cell) == cell
