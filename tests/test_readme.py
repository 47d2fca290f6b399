"""What the README, and those of results and configurations, say is so."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

from disguide_jax.study import intervals, reference

README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "results/README.md").read_text()
CONFIGS = (ROOT / "configs/README.md").read_text()
DOCUMENTS = {ROOT: README, ROOT / "results": RESULTS, ROOT / "configs": CONFIGS}
ALL = "\n".join(DOCUMENTS.values())


def test_it_is_short():
    assert len(README.splitlines()) <= 250


def test_every_link_leads_somewhere():
    for folder, text in DOCUMENTS.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("https://"):
                continue
            path, _, part = target.partition("#")
            found = (folder / path).resolve() if path else folder / "README.md"
            assert found.exists(), (folder, target)
            if part:
                headings = re.findall(r"^#+ (.*)$", found.read_text(), re.M)
                slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
                assert part in slugs, (folder, target)


def test_the_reference_is_what_the_fields_say():
    assert CONFIGS.endswith(reference.reference()), "run scripts/reference.py"


def test_the_example_runs_as_it_stands_and_prints_what_is_said(capsys, monkeypatch):
    (example,) = re.findall(r"```python\n((?:(?!```).)*?)```\n\nIt prints", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    exec(compile(example, "README.md", "exec"), {})
    said = re.search(r"It prints `(.*?)`", README).group(1)
    assert capsys.readouterr().out.strip() == said


def test_what_its_examples_import_of_the_project_is_there():
    lines = re.findall(r"^from disguide_jax\S* import .*$", ALL, re.M)
    assert lines
    for line in lines:
        exec(line, {})


def test_every_file_and_command_it_names_is_there():
    for path in set(re.findall(r"(?:configs|scripts|tests|disguide_jax)/[\w/]+\.py", ALL)):
        if "NAME" not in path:
            assert (ROOT / path).is_file(), path
    for name in re.findall(r"`(\w+\.py)`", ALL):
        assert list((ROOT / "disguide_jax").rglob(name)), name


def test_its_tables_are_those_that_the_studies_wrote():
    tables = re.findall(r"<!-- (results/\S+\.md) -->\n\n((?:\|.*\n)*)", RESULTS)
    assert len(tables) >= 9
    for path, table in tables:
        assert table == (ROOT / path).read_text(), path


def test_every_picture_it_shows_is_there():
    found = [
        folder / path
        for folder, text in DOCUMENTS.items()
        for path in re.findall(r"!\[.+?\]\((\S+)\)", text)
    ]
    assert len(found) >= 5
    for path in found:
        assert path.is_file(), path


ON_CLOTHES = [
    "fashion_soft_best",
    "fashion_soft_best,clones.model=lenet5_half",
    "fashion_soft",
    "fashion_hard_best",
    "fashion_hard",
    "fashion_dfms",
    "fashion_maze",
    "fashion_dfme",
    "fashion_dual_students",
]
EARLIER = [
    "fashion_soft_best,replay.batches=8,schedule.shape=steps",
    "fashion_soft_best,disguide.candidates=1,replay.batches=8,schedule.shape=steps",
    "fashion_hard_best,replay.batches=8,schedule.shape=steps",
    "fashion_hard_best,disguide.candidates=1,replay.batches=8,schedule.shape=steps",
]


@pytest.mark.parametrize(
    ("text", "names"),
    [(README, [*ON_CLOTHES, "digits_soft", "digits_hard"]), (RESULTS, EARLIER)],
    ids=["front page", "results"],
)
def test_the_rows_of_single_seeds_are_those_of_the_kept_summaries(text, names):
    rows = re.findall(
        r"^\| `((digits|fashion)_[\w,.=]+)` \| (\w+) \| ([\d,]+) \| ([\d., ]+) \| ([\d., ]+) \|$",
        text,
        re.M,
    )
    assert [row[0] for row in rows] == names
    for name, family, labels, queries, *shown in rows:
        folder = ROOT / "results" / family / name
        paths = sorted(folder.glob("seed*/summary.json"))  # all of them: no seed is left out
        assert len(paths) == 5
        kept = [json.loads(path.read_text()) for path in paths]
        for text, key in zip(shown, ("soft_vote_accuracy", "fidelity"), strict=True):
            assert text == ", ".join(f"{100 * summary[key]:.1f}" for summary in kept)
        for summary in kept:
            assert summary["config"]["labels"] == labels
            assert {"jax", "disguide_jax"} < summary["versions"].keys()
            assert re.fullmatch("[0-9a-f]{40}", summary["git_commit"])
            assert f"{summary['queries']:,}" == queries
            if name.endswith("_best") or family == "digits":
                assert summary["soft_vote_accuracy"] >= 0.9 * summary["victim_accuracy"]


def test_what_five_times_the_queries_gave_is_what_was_kept():
    said, settings = [], "disguide.candidates=1,replay.batches=8,schedule.shape=steps"
    for budget in ("query_budget=1000000,", ""):
        cell = ROOT / f"results/fashion/fashion_soft_best,{budget}{settings}"
        summary = json.loads((cell / "seed0/summary.json").read_text())
        said += [f"{100 * summary[key]:.1f}" for key in ("soft_vote_accuracy", "fidelity")]
    long, short = "{} % and a fidelity of {} %", "instead of {} and {};"
    text = f"measured with the settings of the table's second row: seed 0 ends at {long} {short}"
    assert text.format(*said) in " ".join(RESULTS.split())


def test_no_kept_result_names_a_folder_of_one_machine():
    kept = [path for path in (ROOT / "results").rglob("*.json*") if path.is_file()]
    assert len(kept) > 200
    for path in kept:
        assert '": "/' not in path.read_text(), path


def test_every_kept_run_names_its_versions_and_commit():
    kept = list((ROOT / "results").rglob("summary.json"))
    assert len(kept) > 100
    for path in kept:
        summary = json.loads(path.read_text())
        assert {"jax", "disguide_jax"} < summary["versions"].keys(), path
        assert re.fullmatch("[0-9a-f]{40}", summary["git_commit"]), path


def test_what_cifar_10_gave_on_a_cpu_is_what_was_kept():
    folder = ROOT / "results/cifar10_cpu"
    kept = json.loads((folder / "summary.json").read_text())
    assert {"jax", "disguide_jax"} < kept["versions"].keys()
    assert re.fullmatch("[0-9a-f]{40}", kept["git_commit"])
    assert kept["config"]["name"] == "c10_soft_narrow"
    minutes = f"{kept['wall_seconds'] / 60:.0f} minutes"
    accuracy, fidelity, victim = (
        f"{100 * kept[key]:.1f} %" for key in ("soft_vote_accuracy", "fidelity", "victim_accuracy")
    )
    header = (ROOT / "configs/c10_soft_narrow.py").read_text()
    assert f"soft vote {accuracy} for seed 0 and a victim with {victim} (results/cif" in header
    assert f"{minutes} on one core" in header
    text = " ".join(RESULTS.split("## CIFAR-10 and CIFAR-100")[1].split())
    assert f"After {kept['queries']:,} queries" in text
    assert f"{minutes} beside another run" in text
    assert f"the soft vote of seed 0 has {accuracy} and a fidelity of {fidelity}" in text
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    at = {line["queries"]: line.get("eval/soft_vote_accuracy") for line in lines}
    first, second, third = (f"{100 * at[queries]:.1f}" for queries in (12_800, 25_600, 38_400))
    assert f"the run above has {first}, {second} and {third} %" in text


def test_what_a_configuration_says_it_yields_is_what_was_kept():
    told = {}
    for path in (ROOT / "configs").glob("*.py"):
        text = " ".join(path.read_text().split())
        said = r"Yields: soft vote ([\d.]+) to ([\d.]+) % for seeds 0 to 4 \(results/(\w+)\)"
        if found := re.search(said, text):
            told[path.stem] = found.groups()
    kept = {path.parent.name for path in (ROOT / "results").glob("[df]*/*_*/seed4")}
    assert told.keys() >= {name for name in kept if "," not in name}
    for name, (least, most, family) in told.items():
        paths = (ROOT / "results" / family / name).glob("seed*/summary.json")
        values = [100 * json.loads(path.read_text())["soft_vote_accuracy"] for path in paths]
        assert (least, most) == (f"{min(values):.1f}", f"{max(values):.1f}"), name


def test_what_four_clones_gain_on_the_digits_is_what_was_kept():
    said = []
    for changed in (",num_clones=4", ""):
        folder = ROOT / f"results/small/digits_soft,query_budget=9600{changed}"
        paths = sorted(folder.glob("seed*/summary.json"))
        kept = [100 * json.loads(path.read_text())["soft_vote_accuracy"] for path in paths]
        said.append("{:.1f} ± {:.1f} %".format(*intervals.mean_and_interval(kept)))
    (gained, _), (usual, half) = ([float(x) for x in re.findall(r"[\d.]+", s)] for s in said)
    assert gained > usual + half, "beyond the interval"
    header = " ".join((ROOT / "configs/digits_soft_best.py").read_text().split())
    assert f"{said[0]} instead of {said[1]} after 9,600 queries" in header


def test_the_speeds_of_endpoints_are_those_that_were_kept():
    kept = json.loads((ROOT / "results/bench/cpu_endpoint.json").read_text())["results"]
    table = RESULTS.split("| victim | queries/s |\n|---|---|\n")[1].split("\n\n")[0]
    shown = [line.split(" | ")[1].strip(" |") for line in table.splitlines()]
    assert shown == [f"{row['queries_per_second']:,.0f}" for row in kept]


def test_the_races_are_those_that_were_kept():
    table = RESULTS.split("| case | ours | PyTorch |\n")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)`.*? \| ([\d.,]+) \| ([\d.,]+) \|$", table, re.M)
    kept = {}
    for path in (ROOT / "results/bench").glob("cpu_race_*.json"):
        race = json.loads(path.read_text())
        medians = [race[f"{who}_queries_per_second"]["median"] for who in ("jax", "torch")]
        kept[race["config"]["name"]] = [f"{m:,.1f}" if m < 10 else f"{m:,.0f}" for m in medians]
    assert {name: shown for name, *shown in rows if name in kept} == kept


@pytest.mark.parametrize("name", ["fashion_soft", "fashion_hard"])
def test_whole_runs_in_pytorch_and_ours_agree_within_their_intervals(name):
    kept = json.loads((ROOT / f"results/bench/torch_{name}.json").read_text())["runs"]
    assert [run["seed"] for run in kept] == [0, 1, 2]
    folder = ROOT / "results/fashion" / name
    paths = [folder / f"seed{run['seed']}/summary.json" for run in kept]
    ours = [json.loads(path.read_text()) for path in paths]
    assert [run["queries"] for run in kept] == [run["queries"] for run in ours]
    assert {run["victim_accuracy"] for run in kept} == {run["victim_accuracy"] for run in ours}
    ranges = []
    for program, key, runs in (("ours", "soft_vote_accuracy", ours), ("PyTorch", "accuracy", kept)):
        values, fidelity = ([100 * run[k] for run in runs] for k in (key, "fidelity"))
        mean, half = intervals.mean_and_interval(values)
        shown = [", ".join(f"{x:.1f}" for x in numbers) for numbers in (values, fidelity)]
        row = f"| `{name}`, {program} | {shown[0]} | {mean:.1f} ± {half:.1f} | {shown[1]} |"
        assert row in RESULTS
        ranges.append((mean - half, mean + half))
    (low, high), (other_low, other_high) = ranges
    assert max(low, other_low) < min(high, other_high)


def test_its_plans_are_those_that_were_kept():
    rows = re.findall(r"^\| `(\w+)` \| (?:H100|A100|RTX 4090) \| (.*) \|$", RESULTS, re.M)
    assert len(rows) == 15
    for i, (name, numbers) in enumerate(rows):
        plan = json.loads((ROOT / f"results/bench/plan_{name}.json").read_text())["results"][i % 3]
        assert plan["memory"]["fits"]
        assert numbers.split(" | ") == [
            f"{plan['memory']['needed'] / 1e9:.1f}",
            f"{plan['bytes_moved'] / 1e9:.1f}",
            f"{1000 * plan['least_seconds_by_bytes']:.1f}",
            f"{1000 * plan['least_seconds_by_products']:.1f}",
            f"{plan['most_queries_per_second']:,.0f}",
            f"{plan['least_hours']:.2f}",
        ]


@pytest.mark.slow
def test_the_commands_of_its_tutorial_end_with_a_report(tmp_path):
    """As they stand, but for the port, for the smaller variant and for where the report goes."""
    section = README.split("## Audit your own model")[1].split("\n## ")[0]
    install, serve, audit = re.findall(r"^(?:pip|python) .*$", section, re.M)
    assert install == "pip install -e '.[serve]'"
    options = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "text": True}
    program, *arguments = shlex.split(serve)
    assert program == "python"
    serving = [sys.executable, *arguments, "--port=0"]
    with subprocess.Popen(serving, stdout=subprocess.PIPE, **options) as server:
        try:
            address = re.search(r"http://\S+", server.stdout.readline())[0]
            program, *arguments = shlex.split(audit)
            done = subprocess.run(
                [
                    *(sys.executable, *arguments[:-1], f"{arguments[-1]}:smoke"),
                    *(f"--config.victim.endpoint={address}", "--config.victim.weights="),
                    "--config.victim.model=",
                    "--config.seeds=0,",
                    "--config.defences=round",
                    f"--workdir={tmp_path}",
                ],
                capture_output=True,
                **options,
            )
        finally:
            server.terminate()
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert {cell["state"] for cell in report["cells"]} <= {"done", "cannot"}
    assert "</html>" in (tmp_path / "report.html").read_text()
