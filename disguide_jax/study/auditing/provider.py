"""What the victim's provider can do, and what it costs: detectors, and the price of defences."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from disguide_jax.audit_config import AuditConfig
from disguide_jax.config import Config
from disguide_jax.errors import UserError
from disguide_jax.files.ledger import Ledger
from disguide_jax.run import price, watching
from disguide_jax.run import program as programs
from disguide_jax.victims.defences import DEFENCES
from disguide_jax.victims.detectors import DETECTORS, Detector, Real

ORDERS = 20  # of real images, in which false alarms are counted


class Provider:
    """Watches runs of one victim with detectors that are calibrated once.

    Args:
      config: of a run of the victim without a defence.
      workdir: of that run, which has ended.
      most: queries of a run that are looked at.
    """

    def __init__(self, config: Config, workdir: pathlib.Path, most: int):
        self._config, self._workdir, self._most = config, workdir, most

    @functools.cached_property
    def _known(self) -> tuple[Real, Real]:
        if not self._config.victim.endpoint:
            return watching.real_images(programs.build(_on_one_device(self._config)))
        with Ledger.opened(self._workdir / "ledger") as ledger:
            return watching.real_images_in(ledger, self._config)

    @functools.cached_property
    def _makers(self) -> dict[str, Callable[[], Detector]]:
        return {name: kind.calibrate(self._known[0]) for name, kind in DETECTORS.items()}

    def watch(self, config: Config, ledger: pathlib.Path | None) -> dict[str, Any]:
        """The first alarms on a run, by detector.

        Args:
          config: of the run, with its seed.
          ledger: the folder of the one that has the queries; None: the rounds are played again.
        """
        detectors = {name: make() for name, make in self._makers.items()}
        with _stream(config, ledger) as stream:
            alarms, num = watching.watch(stream, detectors, most=self._most)
        return {
            name: {
                "alarm": alarm.query if alarm else None,
                "looked_at": num,
                "why": alarm.why if alarm else None,
            }
            for name, alarm in alarms.items()
        }

    def false_alarms(self) -> dict[str, Any]:
        """Alarms on real images in random orders, by detector; {} where there are no images."""
        real = self._known[1]
        if not len(real.labels):
            return {}
        found = {}
        for name, make in self._makers.items():
            alarms = watching.false_alarms(make, real, orders=ORDERS)
            num = sum(alarm is not None for alarm in alarms)
            found[name] = {"alarms": num, "orders": ORDERS, "images": len(real.labels)}
        return found


@contextlib.contextmanager
def _stream(config: Config, folder: pathlib.Path | None) -> Iterator[watching.Stream]:
    """The queries of a run, in order."""
    if folder is None:
        yield watching.queries(programs.build(_on_one_device(config)))
        return
    with Ledger.opened(folder) as ledger:
        yield watching.recorded(ledger)


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
