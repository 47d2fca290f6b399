"""An audit's report as one HTML file that needs nothing else and no network."""

import base64
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import disguide_jax
from disguide_jax.files import atomic
from disguide_jax.study import findings, remedies, report_tables
from disguide_jax.study.findings import Report
from disguide_jax.study.markup import Html, tag, unbroken
from disguide_jax.study.report_figure import figure, measure

ASSETS = pathlib.Path(disguide_jax.__file__).parent / "assets"

WORDS = {
    "Victim": "The model that is audited. The attacker sees its answers and nothing else of it.",
    "Query": "One image that is sent to the victim to be answered. Every query is counted.",
    "Copy": "The model that an attack trains on these answers, often called a clone. Where an "
    "attack trains several, their probabilities are averaged, which is called a soft vote.",
    "Soft answers and hard answers": "Soft answers are the probabilities of all classes. Hard "
    "answers, also called hard labels, are the likeliest class alone.",
    "Fidelity": "The share of test images on which the copy and the victim name the same class, "
    "whether it is right or wrong.",
    "Accuracy": "The share of test images on which a model names the right class.",
    "Made-up images and real images": "Copies for comparison, trained on the victim's answers to "
    "images that no method has chosen: to random pixels and random shapes, which anyone can make, "
    "and to real images, which an attacker may not have.",
    "Defence and detector": "A defence changes what the victim answers. A detector watches the "
    "queries and gives an alarm when they look like an attack.",
    "FGSM and PGD": "Two ways of changing an image slightly, so that the copy is mistaken: in one "
    "step, and in many small steps. Transfer is how often the victim is mistaken, too.",
    "Interval": "Runs differ by chance, in what is called a seed. From three seeds on, “±” gives "
    "the 95 % interval of their mean by Student's t; of fewer, each value is shown.",
}


def write(report: Report, path: pathlib.Path) -> None:
    """Writes the page; after an error the file is what it was.

    Args:
      report: what report.json holds, format 1.
      path: of the page; its directory exists.

    Raises:
      OSError: it cannot be written.
    """
    with atomic.replacing(path) as file:
        file.write(page(report).encode())


def page(report: Report) -> str:
    """The whole page, the same for the same report."""
    style, script = (Html((ASSETS / f"report.{kind}").read_text()) for kind in ("css", "js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    title = f"Extraction audit: {report['name']}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    )
    body = tag(
        "body",
        tag("a", "Skip to the verdict", href="#verdict", class_="skip"),
        tag(
            "main",
            tag("header", tag("h1", title), tag("p", _setting(report), class_="muted")),
            *_first_page(report),
            tag("div", *_details(report), class_="details"),
        ),
        tag("script", script),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _setting(report: Report) -> str:
    """What was audited and how, in sentences."""
    victim, seeds = report["victim"], report["seeds"]
    accuracy = victim["accuracy"]
    right = "of unknown accuracy" if accuracy is None else f"right on {100 * accuracy:.1f} %"
    audited = f"The victim, as the audited model is called: {victim['about'].rstrip('.')}"
    times = "once" if len(seeds) == 1 else f"{len(seeds)} times with other random numbers"
    said = [
        f"{audited}; {victim['num_classes']} classes, {right} of "
        f"{victim['num_test_images']:,} test images ({victim['dataset']})."
        if accuracy is not None
        else f"{audited}; {victim['num_classes']} classes; its "
        f"accuracy is unknown, for want of labelled test images ({victim['dataset']}).",
        f"Each attack was given {report['budget']:,} queries, which are images sent to the victim, "
        f"and was run {times} (seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}).",
    ]
    if report["price_per_1000"] is not None:
        said.append(f"A thousand queries cost {report['price_per_1000']:,.2f}.")
    if report["queries_per_second"] is not None:
        said.append(f"The victim answers {report['queries_per_second']:,g} queries a second.")
    return " ".join(said)


def _first_page(report: Report) -> Iterator[Html]:
    yield tag("p", unbroken(findings.verdict(report)), class_="verdict", id="verdict", tabindex=-1)
    facts = [
        tag("div", tag("dt", heading), tag("dd", unbroken(sentence)))
        for heading, sentence in findings.facts(report)
    ]
    if facts:
        yield tag("dl", *facts, class_="facts")
    yield from _figure(report)
    yield tag("h2", "The attacks beside each other", id="attacks")
    yield tag(
        "p",
        "Fidelity is the share of test images on which copy and victim name the same class. Soft "
        "answers are the probabilities of all classes; hard answers are the likeliest class alone. "
        "PGD changes images slightly until the copy is mistaken; the column says how often the "
        "victim is mistaken, too. A heading sorts the table.",
    )
    yield report_tables.attacks(report)
    yield tag("h2", "What would help most", id="help")
    yield from (tag("p", unbroken(sentence)) for sentence in remedies.advice(report))
    yield tag("h2", "What was not tested", id="untested")
    untested = list(findings.not_tested(report))
    if untested:
        yield tag("ul", *(tag("li", sentence) for sentence in untested))
    else:
        yield tag("p", "Nothing is known to be missing.")
    links = [tag("li", tag("a", text, href=f"#{name}")) for name, text in SECTIONS.items()]
    yield tag("nav", tag("ul", *links), aria_label="Details")


def _figure(report: Report) -> Iterator[Html]:
    drawn = [
        figure(report, "wide", 880, 400),
        figure(report, "narrow", 340, 360),
    ]
    if drawn[0] is None:
        yield tag("p", "There is no figure, because no undefended run finished.", class_="muted")
        return
    victim = "; the victim's own is dashed" if measure(report) == "accuracy" else ""
    several = ", as the mean over seeds; thin lines are single seeds" * (len(report["seeds"]) > 1)
    caption = (
        f"The copies' {measure(report)} on the test images against the number of queries"
        f"{several}{victim}. Attacks are coloured, comparisons grey, and dots where they were "
        "measured at the end alone; dotted lines were told hard answers."
    )
    yield tag("figure", *(d for d in drawn if d), tag("figcaption", caption))


SECTIONS = {
    "words": "Words",
    "cells": "All cells",
    "seeds": "Every seed",
    "failed": "What failed and what cannot be",
    "defences": "Defences",
    "detectors": "Detectors",
    "transfer": "Adversarial examples",
    "pictures": "Pictures of queries",
    "provenance": "Provenance",
}


def _details(report: Report) -> Iterator[Html]:
    content = {
        "words": _words(),
        "cells": [report_tables.cells(report)],
        "seeds": [report_tables.runs(report)],
        "failed": _failed(report),
        "defences": report_tables.defences(report),
        "detectors": report_tables.detectors(report),
        "transfer": report_tables.transfer(report),
        "pictures": _pictures(report),
        "provenance": _provenance(report),
    }
    for name, parts in content.items():
        yield tag("section", tag("h2", SECTIONS[name], id=name), *parts)


def _words() -> Iterator[Html]:
    pairs = (tag("div", tag("dt", word), tag("dd", meaning)) for word, meaning in WORDS.items())
    yield tag("dl", *pairs, class_="words")


def _failed(report: Report) -> Iterator[Html]:
    states = {"failed": "failed", "cannot": "cannot be"}
    said = [
        tag("li", tag("strong", report_tables.named(c)), f" {states[c['state']]}: ", c["why"] or "")
        for c in report["cells"]
        if c["state"] in states
    ]
    yield tag("ul", *said) if said else tag("p", "Every cell finished.")


def _pictures(report: Report) -> Iterator[Html]:
    shown = 0
    for cell in report["cells"]:
        name = report_tables.named(cell)
        pictures = [
            tag(
                "img",
                src=f"data:image/png;base64,{picture}",
                alt=f"Queries of {name}, picture {i} of {len(cell['samples'])}",
                loading="lazy",
            )
            for i, picture in enumerate(cell["samples"], 1)
            if re.fullmatch(r"[A-Za-z0-9+/=\s]+", picture)
        ]
        if pictures:
            shown += 1
            yield tag("h3", f"{name[0].upper()}{name[1:]}")
            yield tag("p", f"What it sent to the victim in its last run. {cell['about']}")
            yield tag("div", *pictures, class_="pictures")
    if not shown:
        yield tag("p", "There are no pictures.")


def _provenance(report: Report) -> Iterator[Html]:
    said: dict[str, Any] = report["provenance"]
    commit = said.get("git_commit")
    yield tag(
        "p",
        "This report was made by ",
        tag("code", said.get("command") or "an unknown command"),
        ", of commit " if commit else ", of a version that is no commit",
        *([tag("code", commit)] if commit else []),
        ".",
    )
    for key, heading in (
        ("versions", "Versions"),
        ("hardware", "Hardware"),
        ("contents", "SHA-256 of what was read"),
    ):
        found = said.get(key) or {}
        if found:
            lines = (
                tag("li", f"{k}: ", tag("code", v if isinstance(v, str) else json.dumps(v)))
                for k, v in found.items()
            )
            yield tag("h3", heading)
            yield tag("ul", *lines)
    commands = dict.fromkeys(r["command"] for c in report["cells"] for r in c["runs"])
    if commands:
        yield tag("h3", "Commands of the runs")
        yield tag("ul", *(tag("li", tag("code", c)) for c in commands), class_="commands")
