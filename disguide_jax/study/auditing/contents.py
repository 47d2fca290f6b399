"""What report.json holds: the cells of an audit that have been run, measured and put together."""

import pathlib
from collections.abc import Sequence
from typing import Any

from disguide_jax.files import workdir as workdir_files
from disguide_jax.run import asked
from disguide_jax.study import measure
from disguide_jax.study.auditing import bought, cells, measures
from disguide_jax.study.auditing.kept import kept
from disguide_jax.study.auditing.measurer import Measurer
from disguide_jax.study.auditing.provider import prices
from disguide_jax.study.auditing.runs import Played

FORMAT = 1  # of report.json


def gather(
    measurer: Measurer, workdir: pathlib.Path, played: Sequence[Played], command: str
) -> dict[str, Any]:
    """Puts together what report.json holds, and measures what has not been.

    Args:
      measurer: of the audit, which has measured a cell.
      workdir: of the audit, which keeps what was measured.
      played: all cells.
      command: what was typed.

    Raises:
      UserError: the victim or the images have gone.
    """
    config, first = measurer.config, measurer.first
    made = [_cell(measurer, each, command) for each in played]
    print("measures what defences cost, and alarms on real images", flush=True)
    contents = asked.contents_of(measurer.plain)
    false_alarms = {}
    if config.detector_queries:
        false_alarms = kept(
            workdir / "false_alarms.json",
            [contents, measurer.plain.labels],
            lambda: measurer.provider.false_alarms(),
        )
    num_test_images = len(measurer.tested().images)
    _, about = measurer.victim(measurer.plain.labels)
    return {
        "format": FORMAT,
        "name": config.name,
        "victim": {
            "about": about,
            "dataset": config.dataset,
            "accuracy": first.summary(first.seeds[0])["victim_accuracy"],
            "num_classes": asked.describe(measurer.plain).num_classes,
            "num_test_images": num_test_images,
        },
        "budget": config.query_budget,
        "price_per_1000": config.price_per_1000 or None,
        "queries_per_second": config.queries_per_second or None,
        "seeds": list(config.seeds),
        "cells": made,
        "defences": kept(
            workdir / "prices.json",
            [contents, config.defences],
            lambda: prices(config, measurer.plain),
        ),
        "false_alarms": false_alarms,
        "not_tested": cells.not_tested(config),
        "provenance": {
            "command": command,
            **workdir_files.provenance(),
            "hardware": measure.hardware(),
            "contents": contents,
        },
    }


def _cell(measurer: Measurer, played: Played, command: str) -> dict[str, Any]:
    """A cell as the report has it."""
    cell = played.cell
    return {
        "attack": cell.attacker,
        "about": cells.about(cell),
        "role": cells.role(cell.attack),
        "learnt_from": cells.learnt_from(cell.attack),
        "answers": cell.answers,
        "defence": cell.defence,
        "about_defence": cells.about_defence(measurer.config, cell.defence),
        "state": played.state,
        "why": played.why,
        "runs": [_run(measurer, played, seed, command) for seed in played.seeds],
        "samples": measures.samples(played.pictures()),
        "detectors": measurer.alarms(played),
    }


def _run(measurer: Measurer, played: Played, seed: int, command: str) -> dict[str, Any]:
    """A run as the report has it."""
    cell, place = played.cell, played.bought(seed)
    command += (
        f" --config.attacks={cell.attack} --config.answers={cell.answers} "
        f"--config.defences={cell.defence} --config.adaptive_losses={cell.loss} "
        f"--config.seeds={seed}"
    )
    received = bought.received(place) if place else None
    return {
        "seed": seed,
        **measures.run_of(played.workdir(seed), played.summary(seed), received),
        **measurer.outcome(played, seed),
        "command": command,
    }
