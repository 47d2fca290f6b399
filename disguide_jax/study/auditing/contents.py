"""What report.json holds: the cells of an audit that have been run, measured and put together."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from disguide_jax.audit_config import AuditConfig
from disguide_jax.files import workdir as workdir_files
from disguide_jax.run import asked
from disguide_jax.study import measure
from disguide_jax.study.auditing import bought, cells, measures
from disguide_jax.study.auditing.kept import kept
from disguide_jax.study.auditing.provider import Provider, prices
from disguide_jax.study.auditing.runs import Played
from disguide_jax.victims.defences import Traced
from disguide_jax.victims.host import Endpoint

FORMAT = 1  # of report.json


class _Known(NamedTuple):
    """What cells are measured with."""

    config: AuditConfig
    victims: dict[str, Traced | Endpoint]  # without a defence, by the kind of answers
    accuracy: float | None  # of the victim
    provider: Provider | None
    command: str


def gather(
    config: AuditConfig, workdir: pathlib.Path, played: Sequence[Played], command: str
) -> dict[str, Any]:
    """Measures runs that have ended, and returns what report.json holds.

    Args:
      config: of the audit.
      workdir: of the audit, which keeps what was measured.
      played: all cells; a run of one of them has ended.
      command: what was typed.

    Raises:
      UserError: the victim or the images have gone.
    """
    first = min((each for each in played if each.seeds), key=lambda each: each.cell.defence)
    plain, place = first.undefended(first.seeds[0]), first.workdir(first.seeds[0])
    accuracy = first.summary(first.seeds[0])["victim_accuracy"]
    provider = None
    if config.detector_queries:
        provider = Provider(plain, place, config.detector_queries)
    with contextlib.ExitStack() as open_:
        victims, about = {}, ""
        for each in reversed(played):
            if each.seeds and each.cell.answers not in victims:
                victim, _, about = measures.undefended(each.undefended(each.seeds[0]))
                victims[each.cell.answers] = victim
                if not isinstance(victim, Traced):
                    open_.enter_context(contextlib.closing(victim))
        known = _Known(config, victims, accuracy, provider, command)
        made = []
        for i, each in enumerate(played):
            print(f"measures cell {i + 1} of {len(played)}: {each.cell}", flush=True)
            made.append(_cell(known, each))
        tested = measures.tested(plain, place, victims[first.cell.answers])
    print("measures what defences cost, and alarms on real images", flush=True)
    contents = asked.contents_of(plain)
    false_alarms = {}
    if provider:
        path = workdir / "false_alarms.json"
        false_alarms = kept(path, [contents, plain.labels], provider.false_alarms)
    return {
        "format": FORMAT,
        "name": config.name,
        "victim": {
            "about": about,
            "dataset": config.dataset,
            "accuracy": accuracy,
            "num_classes": asked.describe(plain).num_classes,
            "num_test_images": len(tested.images),
        },
        "budget": config.query_budget,
        "price_per_1000": config.price_per_1000 or None,
        "queries_per_second": config.queries_per_second or None,
        "seeds": list(config.seeds),
        "cells": made,
        "defences": kept(
            workdir / "prices.json",
            [contents, config.defences],
            lambda: prices(config, plain),
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


def _cell(known: _Known, played: Played) -> dict[str, Any]:
    """A cell as the report has it."""
    cell, detectors = played.cell, None
    if known.provider and played.seeds:
        seed, provider = played.seeds[0], known.provider
        detectors = kept(
            played.folder / "detectors.json",
            [seed, known.config.detector_queries],
            lambda: provider.watch(played.run_config(seed), played.ledger(seed)),
        )
    return {
        "attack": cell.attacker,
        "about": cells.about(cell),
        "role": cells.role(cell.attack),
        "learnt_from": cells.learnt_from(cell.attack),
        "answers": cell.answers,
        "defence": cell.defence,
        "about_defence": cells.about_defence(known.config, cell.defence),
        "state": played.state,
        "why": played.why,
        "runs": [_run(known, played, seed) for seed in played.seeds],
        "samples": measures.samples(played.pictures()),
        "detectors": detectors,
    }


def _run(known: _Known, played: Played, seed: int) -> dict[str, Any]:
    """A run as the report has it."""
    cell, workdir, summary = played.cell, played.workdir(seed), played.summary(seed)
    place, transfer = played.bought(seed), known.config.transfer
    measured = kept(
        workdir / "outcome.json",
        [summary["clones_sha256"], dataclasses.asdict(transfer)],
        lambda: measures.outcome(
            played.undefended(seed), workdir, known.victims[cell.answers], transfer
        ),
    )
    command = (
        f"{known.command} --config.attacks={cell.attack} --config.answers={cell.answers} "
        f"--config.defences={cell.defence} --config.adaptive_losses={cell.loss} "
        f"--config.seeds={seed}"
    )
    return {
        "seed": seed,
        **measures.run_of(workdir, summary, bought.received(place) if place else None),
        **measured,
        "command": command,
    }
