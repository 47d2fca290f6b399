"""report.html: its numbers, by hand, and what a page must be that everyone can read."""

import base64
import hashlib
import html
import html.parser
import itertools
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from made_report import make_cell, make_report, make_run, make_runs

from disguide_jax.study import findings, intervals, remedies, report

VOID = {"meta", "img"}
NO_BREAK = "\N{NO-BREAK SPACE}"


class Page(html.parser.HTMLParser):
    """What a page holds; every element must be closed where it was opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), [t for t, _ in self.open]))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if not {"style", "script"} & {tag for tag, _ in self.open}:
            self.words.append(data)

    def all(self, *tags):
        return [attributes for tag, attributes, _ in self.found if tag in tags]

    @property
    def text(self):
        return " ".join("".join(f" {w}" for w in self.words).replace(NO_BREAK, " ").split())


def parse(**changes):
    return Page(report.page(make_report(**changes)))


def rows_of(text, caption):
    """The rows of the table whose caption begins so: what is written, without notes."""
    table = next(
        t
        for t in re.findall(r"<table>.*?</table>", text, re.S)
        if t.replace(NO_BREAK, " ").startswith(f"<table><caption>{caption}")
    )
    table = re.sub(r"<small>.*?</small>", "", table)
    return [
        [html.unescape(re.sub("<.*?>", "", e)) for e in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in re.findall(r"<tr>.*?</tr>", table)
    ]


def without_labels():
    run = make_run(0, None, 0.9, transfer=None)
    missing = {"price_per_1000": None, "queries_per_second": None, "seeds": [0], "not_tested": []}
    made = make_report(defences={}, false_alarms={}, **missing)
    made["victim"] |= {"accuracy": None, "num_test_images": 0}
    made["cells"] = [make_cell("disguide", [run], detectors=None)]
    made["provenance"] |= {"git_commit": None, "hardware": {}, "contents": {}}
    return made


def all_failed():
    made = make_report()
    for cell in made["cells"]:
        cell.update(state="failed", why="the endpoint was gone", runs=[], detectors=None)
    return made


WHOLE = {
    "usual": make_report,
    "without labels, price, detectors and baseline": without_labels,
    "all failed": all_failed,
    "nothing": lambda: make_report(cells=[], defences={}, false_alarms={}, not_tested=[]),
}


@pytest.fixture(params=WHOLE, name="made")
def _made(request):
    return WHOLE[request.param]()


def test_every_page_is_whole_and_needs_nothing_else(made):
    text = report.page(made)
    page = Page(text)
    ids = [a["id"] for _, a, _ in page.found if "id" in a]
    assert len(set(ids)) == len(ids)
    links = page.all("a")
    assert links
    assert all(a["href"].startswith("#") and a["href"][1:] in ids for a in links)
    for names in (a.get("aria-labelledby", "") for _, a, _ in page.found):
        assert set(names.split()) <= set(ids)
    assert not page.all("link", "iframe", "object", "base")
    assert all(a["src"].startswith("data:image/png;base64,") for a in page.all("img"))
    assert not page.all("script")[0]
    assert not re.search(r"url\(|@import|fetch|XMLHttp|https?://", text)
    names = {name for _, attributes, _ in page.found for name in attributes}
    assert not {n for n in names if n == "style" or n.startswith("on")}


def test_every_page_can_be_read_by_everyone(made):
    page = Page(report.page(made))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("title")) - len(page.all("svg")) == 1
    levels = [int(tag[1]) for tag, _, _ in page.found if re.fullmatch(r"h\d", tag)]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    links = page.all("a")
    assert links[0] == {"href": "#verdict", "class": "skip"}
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    heads = sum(tag == "th" and "thead" in inside for tag, _, inside in page.found)
    buttons = [inside for tag, _, inside in page.found if tag == "button"]
    assert len(buttons) == heads
    assert all(inside[-2:] == ["tr", "th"] for inside in buttons)
    assert all(a["alt"] for a in page.all("img"))
    assert all(a["role"] == "img" for a in page.all("svg"))
    assert "None" not in page.text
    assert "nan" not in page.text.split()


def test_the_policy_lets_only_this_script_and_this_style_through():
    text = report.page(make_report())
    policy = next(a["content"] for a in Page(text).all("meta") if "http-equiv" in a)
    for tag in ("style", "script"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 0xFF for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_has_enough_contrast_in_light_and_in_dark():
    style = (report.ASSETS / "report.css").read_text()
    schemes = re.findall(r":root \{(.*?)\}", style, re.S)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w{6});", scheme))
        for behind in ("paper", "panel"):
            for name in ("ink", "muted", "accent"):
                a, b = (luminance(colours[key]) + 0.05 for key in (name, behind))
                assert max(a / b, b / a) >= 4.5, (name, behind)
    assert not re.search(r"(?<!-)color: #", style)


def test_the_verdict_by_hand():
    assert findings.verdict(make_report()) == (
        "With 20,000 queries, at a price of 30.00 and within 0.023 days (33 minutes), the attack "
        "disguide, shown the probabilities of all classes, made a copy that answers like the "
        "victim on 92.0 % of the test images; a copy trained on random pixels does so on 43.0 %, "
        "and a copy trained on real images does so on 96.0 %."
    )


def test_the_verdict_is_about_the_most_faithful_attack():
    made = make_report()
    made["cells"].append(make_cell("maze", make_runs([0.9] * 3, [0.99] * 3), answers="hard"))
    said = findings.verdict(made)
    assert "the attack maze, shown the likeliest class alone" in said
    assert "copies trained on made-up images or on real images were not measured" in said


def test_facts_by_hand():
    facts = dict(findings.facts(make_report()))
    assert facts["Fidelity"].startswith(
        "The copy names the same class as the victim on 92.0 ± 5.0 % of the test images."
    )
    assert facts["Accuracy"] == (
        "The copy is right on 85.0 % of the test images and the victim on 90.0 %, which is 94.4 % "
        "of the victim's accuracy."
    )
    assert facts["How soon"] == (
        "It reached 90 % of the victim's accuracy after 10,000 queries, at a price of 15.00 and "
        "within 0.012 days (17 minutes)."
    )
    # Welch by hand: variances 0.0004 and 0.0001, both of three
    assert facts["What the method adds"] == (
        "Beside a copy trained on random pixels, 49.0 ± 4.2 percentage points of fidelity."
    )
    assert "mislead the victim in 60.0 % of cases" in facts["What the copy is good for"]
    assert facts["Would it be noticed?"] == (
        "The first alarm was given at query 1,300, by the detector prada. Of 20 streams of real "
        "images, it took 1 for an attack."
    )


def test_an_attack_that_adds_nothing_is_called_so():
    made = make_report()
    made["cells"][4]["runs"] = make_runs([0.8] * 3, [0.88, 0.93, 0.94])
    assert "No more than random pixels give" in dict(findings.facts(made))["What the method adds"]


def test_intervals_by_hand():
    # Student's t of 2 degrees of freedom is 4.3027 at 97.5 %; sd 0.02 -> 4.3027 * 0.02 / sqrt(3)
    assert findings.shown([0.90, 0.92, 0.94]) == "92.0 ± 5.0"
    assert findings.shown([0.90, 0.92]) == "90.0, 92.0"
    assert findings.shown([0.90]) == "90.0"
    assert findings.shown([]) == ""
    mean, half = intervals.difference([0.90, 0.92, 0.94], [0.42, 0.44, 0.43])
    # squares 0.0004 / 3 and 0.0001 / 3; freedom 2.941; t 3.219; t * sqrt(0.0005 / 3)
    assert mean == pytest.approx(0.49)
    assert half == pytest.approx(0.04156, abs=2e-5)
    assert intervals.difference([0.5, 0.5], [0.4, 0.4]) == (pytest.approx(0.1), 0)


@pytest.mark.parametrize(
    ("days", "text"),
    [
        (1234.4, "1,234 days"),
        (2.345, "2.3 days"),
        (0.25, "0.25 days (6 hours)"),
        (1 / 24, "0.042 days (1 hour)"),
        (20_000 / 10 / 86400, "0.023 days (33 minutes)"),
        (0.0001, "0.0001 days (8.6 seconds)"),
    ],
)
def test_days_are_said_so_that_they_mean_something(days, text):
    assert findings.in_time(days) == text


def test_money_and_days_by_hand():
    made = make_report()
    assert findings.money(made, 20_000) == 30  # 20 thousands, 1.50 each
    assert findings.days(made, 864_000) == 1  # 10 a second, 86,400 seconds
    assert findings.in_money(0.001) == "under 0.01"
    assert findings.in_money(0) == "0.00"
    assert findings.in_money(1234.5) == "1,234.50"


def test_the_first_table_by_hand():
    text = report.page(make_report())
    rows = rows_of(text, "What each attack reaches")
    assert rows[1] == [
        "disguide",
        "soft",
        "85.0 ± 2.5",
        "92.0 ± 5.0",
        "10,000 ± 0",
        "30.00",
        "60.0 ± 0.0",
        "1,300",
    ]
    assert [row[:2] for row in rows[1:]] == [
        ["disguide", "soft"],
        ["disguide", "hard"],
        ["dfme", "soft"],
        ["maze", "soft"],
        ["random", "soft"],
        ["knockoff", "soft"],
    ]
    assert rows[4][2:5] == ["failed", "\N{EN DASH}", "\N{EN DASH}"]
    assert "15.00, 0.012 days" in Page(text).text


def test_numbers_are_sorted_as_numbers_and_what_is_missing_says_so():
    text = report.page(make_report())
    assert '<td class="number" data-value="30.0">30.00<small>0.023 days</small></td>' in text
    assert '<td class="number" data-value="">not reached</td>' in text
    assert '<th scope="row">disguide</th>' in text


def test_all_cells_are_shown():
    made = make_report()
    rows = rows_of(report.page(made), "All cells")[1:]
    assert len(rows) == len(made["cells"])
    scores = ["85.0 ± 2.5", "92.0 ± 5.0", "92.0 ± 5.0", "5,000 ± 0", "10,000 ± 0", "18,500"]
    assert rows[0] == ["disguide", "soft", "none", "finished", "3", *scores]
    assert rows[3][3:5] == ["failed", "0"]
    assert rows[7][:4] == ["disguide", "hard", "round", "cannot be"]
    assert "1 of 3 seeds" in report.page(made)


def test_the_first_alarm_is_that_of_the_earliest_detector():
    cell = make_report()["cells"][0]
    assert findings.first_alarm(cell) == (1_300, "prada")
    cell["detectors"]["label_histogram"]["alarm"] = 900
    assert findings.first_alarm(cell) == (900, "label_histogram")
    cell["detectors"] = {"prada": {"alarm": None, "looked_at": 20_000, "why": None}}
    assert findings.first_alarm(cell) is None


def test_all_seeds_are_shown():
    made = make_report()
    rows = rows_of(report.page(made), "The final values of every seed")[1:]
    assert len(rows) == sum(len(cell["runs"]) for cell in made["cells"])
    counted = "20,000 84.0 90.0 90.0 5,000 10,000 18,500"
    assert rows[0] == f"disguide soft none 0 {counted}".split()
    page = parse()
    for cell in made["cells"]:
        for run in cell["runs"]:
            assert run["command"] in page.text


def test_fewer_than_three_seeds_give_values_and_no_interval():
    made = make_report(seeds=[0, 1])
    for cell in made["cells"]:
        cell["runs"] = cell["runs"][:2]
    rows = rows_of(report.page(made), "What each attack reaches")
    assert rows[1][2:4] == ["84.0, 85.0", "90.0, 92.0"]
    assert remedies.advice(made)[-1].startswith("With fewer than three seeds no interval")


def test_the_defence_that_helps_most_for_what_it_costs():
    # An attack on labels, 76 %, is left behind rounding; noise lowers more, for 4 points.
    first, second = remedies.advice(make_report())
    assert first == (
        "Most for what it costs: the defence round leaves the strongest attack that is left "
        "(disguide, hard answers) a fidelity of 76.0 % in place of 92.0 %, 16.0 ± 4.2 percentage "
        "points less. Honest users lose no accuracy (90.0 % without it, 90.0 % with it)."
    )
    assert second.startswith("Most at any price: the defence noise leaves")
    assert "a fidelity of 42.0 % in place of 92.0 %" in second
    assert "Honest users lose 4.0 percentage points of accuracy" in second


def test_defences_are_ranked_by_fidelity_for_accuracy():
    made = make_report()
    made["defences"]["round"]["defended_accuracy"] = 0.89  # 16 points for 1, beside 50 for 4
    assert [item.defence for item in remedies.helps(made)] == ["round", "noise"]
    made["defences"]["round"]["defended_accuracy"] = 0.88  # 16 for 2, less than 50 for 4
    assert [item.defence for item in remedies.helps(made)] == ["noise", "round"]
    made["defences"]["noise"] = {"about": "adds noise", "why": "there are no labels"}
    assert [item.defence for item in remedies.helps(made)] == ["round", "noise"]
    assert "is not known: there are no labels." in remedies.advice(made)[1]


def test_a_defence_within_the_interval_does_not_help():
    made = make_report()
    behind = [c for c in made["cells"] if c["defence"]]
    for cell in behind:
        cell["runs"] = cell["runs"] and make_runs([0.8] * 3, [0.89, 0.91, 0.93])
    assert remedies.advice(made) == [
        "No defence that was measured lowers the fidelity of the strongest attack by more than "
        "the seeds differ (95 % interval)."
    ]


def test_a_defence_whose_run_failed_is_not_judged():
    made = make_report()
    made["cells"][6].update(state="failed", why="stopped", runs=[])
    assert [item.defence for item in remedies.helps(made)] == ["noise"]
    assert remedies.advice(made)[-1].endswith("missing or failed: round.")
    made["cells"][9].update(state="failed", why="stopped", runs=[])  # on labels, behind noise
    assert remedies.helps(made) == []


def test_failed_and_impossible_cells_stand_with_their_reason():
    text = parse().text
    assert "maze, soft answers failed: it ran out of <memory> & stopped" in text
    assert "disguide, hard answers, behind round cannot be: the top class stays what it is" in text


def test_what_is_missing_is_said():
    made = without_labels()
    page = Page(report.page(made))
    assert findings.verdict(made) == (
        "With 20,000 queries, the attack disguide, shown the probabilities of all classes, made a "
        "copy that answers like the victim on 90.0 % of the test images; copies trained on "
        "made-up images or on real images were not measured."
    )
    for said in (
        "no labelled test images, so that only fidelity is known",
        "no price of queries was given",
        "no rate of queries was given",
        "No detector watched the queries.",
        "No defence was measured.",
        "False alarms on real images were not measured.",
        "Adversarial examples were not tried.",
        "There are no pictures.",
        "Every cell finished.",
        "The copies' fidelity",
    ):
        assert said in page.text, said
    assert "Cost" not in page.text
    assert 'class="victim"' not in report.page(made)


def test_a_page_without_any_success_says_so():
    page = Page(report.page(all_failed()))
    assert "No attack on the undefended victim finished" in page.text
    assert "There is no figure" in page.text
    assert "10 of 10 cells failed" in page.text
    assert page.text.count("the endpoint was gone") == 10


def test_what_is_given_never_becomes_markup():
    evil = '</script><script>alert("1")</script><img src=x onerror=y>\'&'

    def spoil(value, key=""):
        if isinstance(value, dict):
            return {k: spoil(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(v, key) for v in value]
        keep = ("role", "answers", "state", "defence", "samples")
        return value + evil if isinstance(value, str) and key not in keep else value

    made = spoil(make_report())
    for cell in made["cells"]:
        cell["defence"] += evil * bool(cell["defence"])
        cell["samples"] = [evil, *cell["samples"]]
        cell["detectors"] = {evil: {"alarm": 3, "looked_at": 3, "why": evil}}
    made["defences"] = {name + evil: price for name, price in made["defences"].items()}
    made["false_alarms"] = {evil: {"alarms": 1, "orders": 2, "images": 3}}
    made["provenance"]["versions"] = {evil: evil}
    before, after = parse(), Page(report.page(made))
    assert len(after.all("script")) == 1
    assert len(after.all("img")) == len(before.all("img")) == 1
    assert evil in after.text


def test_the_figure_shows_every_undefended_run_and_the_victim():
    text = report.page(make_report())
    wide = re.search(r'<svg viewBox="0 0 880.*?</svg>', text, re.S)[0]
    drawn = Page(wide)
    assert sum(a.get("class") == "mean" for a in drawn.all("path")) == 5
    assert sum(a.get("class") == "seed" for a in drawn.all("path")) == 15
    assert "victim 90.0 %" in drawn.text
    names = [a for a in drawn.all("text") if "name" in a.get("class", "") and a["class"] != "name"]
    places = sorted(float(a["y"]) for a in names)
    assert all(b - a >= 15.9 for a, b in itertools.pairwise(places))
    best = next(a for a in names if a["class"].endswith("best"))
    assert best["class"] == "name attack soft best"
    mean = re.search(r'<g class="attack soft best">.*?class="mean"></path>', wide)[0]
    last = mean.rsplit("L", 1)[1].split('"')[0].split()
    assert float(last[1]) == pytest.approx(34 + (400 - 34 - 44) * (1 - 0.8426), abs=0.1)


def test_what_was_learnt_from_one_set_of_images_is_a_dot_and_no_line():
    made = make_report()
    (bought,) = (c for c in made["cells"] if c["attack"] == "random")
    for run, accuracy in zip(bought["runs"], (0.40, 0.41, 0.42), strict=True):
        run["curve"] = [[20_000, accuracy]]
    wide = re.search(r'<svg viewBox="0 0 880.*?</svg>', report.page(made), re.S)[0]
    (group,) = re.findall(r'<g class="baseline soft">(.*?)</g>', wide)
    (dot,) = Page(group).all("circle")
    assert "<path" not in group
    assert float(dot["cy"]) == pytest.approx(34 + (400 - 34 - 44) * (1 - 0.41), abs=0.1)
    ends = re.search(r'<g class="attack soft best">.*?class="mean"></path>', wide)[0]
    last = ends.rsplit("L", 1)[1].split()[0]
    assert float(dot["cx"]) == pytest.approx(float(last), abs=0.1), "both at the whole budget"


def test_equal_reports_give_equal_files_whole_or_not_at_all(tmp_path):
    made = make_report()
    report.write(made, tmp_path / "a.html")
    report.write(json.loads(json.dumps(made)), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    del made["victim"]
    with pytest.raises(KeyError):
        report.write(made, tmp_path / "a.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_the_page_is_made_without_jax_and_matplotlib():
    code = (
        "import sys, disguide_jax.study.report; "
        "assert not {'jax', 'matplotlib', 'flax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_comes_with_the_package():
    assert '"report.*"' in (ROOT / "pyproject.toml").read_text()
