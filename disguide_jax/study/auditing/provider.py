"""What the victim's provider can do, and what it costs: detectors, and the price of defences."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

from disguide_jax.audit_config import AuditConfig
from disguide_jax.config import Config
from disguide_jax.errors import UserError
from disguide_jax.files.ledger import Ledger
from disguide_jax.run import asked, price, watching
from disguide_jax.run import program as programs
from disguide_jax.run.compiled import FunctionsOf
from disguide_jax.victims.defences import DEFENCES


class Provider:
    """Watches runs of one victim with detectors that are calibrated once.

    Args:
      config: of a run of the victim without a defence.
      workdir: of that run, which has ended.
      most: queries of a run that are looked at.
      functions_of: of the runs whose rounds are played again.
    """

    def __init__(self, config: Config, workdir: pathlib.Path, most: int, functions_of: FunctionsOf):
        self._config, self._workdir, self._most = config, workdir, most
        self._functions_of = functions_of

    @functools.cached_property
    def _prepared(self) -> watching.Prepared:
        if not self._config.victim.endpoint:
            program = programs.build(_on_one_device(self._config))
            return watching.prepare(watching.real_images(program))
        num_classes = asked.describe(self._config).num_classes
        with Ledger.opened(self._workdir / "ledger") as ledger:
            return watching.prepare(watching.answered_images(ledger, num_classes))

    def watch(self, config: Config, ledger: pathlib.Path | None) -> dict[str, Any]:
        """The first alarms on a run, by detector.

        Args:
          config: of the run, with its seed.
          ledger: the folder of the one that has the queries; None: the rounds are played again.
        """
        with self._stream(config, ledger) as stream:
            watched = watching.judge(stream, self._prepared, most=self._most)
        return {
            name: {
                "alarm": found.alarm.query if found.alarm else None,
                "looked_at": found.num_queries,
                "why": found.alarm.why if found.alarm else None,
            }
            for name, found in watched.items()
        }

    @contextlib.contextmanager
    def _stream(self, config: Config, folder: pathlib.Path | None) -> Iterator[watching.Stream]:
        """The queries of a run, in order."""
        if folder is None:
            program = programs.build(_on_one_device(config))
            yield watching.queries(program, self._functions_of)
            return
        with Ledger.opened(folder) as ledger:
            yield watching.recorded(ledger)

    def false_alarms(self) -> dict[str, Any]:
        """Alarms on real images in random orders, by detector; {} where there are no images."""
        num = self._prepared.num_real
        if not num:
            return {}
        return {
            name: {
                "alarms": sum(alarm is not None for alarm in alarms),
                "orders": len(alarms),
                "images": num,
            }
            for name, alarms in self._prepared.false_alarms.items()
        }


def _on_one_device(config: Config) -> Config:
    return dataclasses.replace(config, seeds=(), devices=1)


def prices(audit: AuditConfig, config: Config) -> dict[str, Any]:
    """What each defence of an audit costs honest users, or why that is not known.

    Args:
      audit: whose defences they are.
      config: of a run without a defence.
    """
    config = dataclasses.replace(config, victim=audit.victim, seeds=())
    kinds = {name: kind for name, kind in DEFENCES.items() if name in audit.defences}
    try:
        priced = list(zip(DEFENCES, price.prices(config), strict=True)) if kinds else []
    except UserError as error:
        return {
            name: {"about": kind.about(price.with_defence(config, kind).victim), "why": str(error)}
            for name, kind in kinds.items()
        }
    found = {}
    for name, (about, cost) in priced:
        if name in kinds:
            said = {"why": cost} if isinstance(cost, str) else cost._asdict()
            found[name] = {"about": about.partition(": ")[2], **said}
    return found
