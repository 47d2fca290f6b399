"""What is known of the victim of an audit, made once and when it is needed, and used to measure."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Self

from disguide_jax.audit_config import AuditConfig
from disguide_jax.study.auditing import measures
from disguide_jax.study.auditing.kept import kept
from disguide_jax.study.auditing.provider import Provider
from disguide_jax.study.auditing.runs import Played
from disguide_jax.victims.defences import Traced
from disguide_jax.victims.host import Endpoint


class Measurer:
    """Measures cells of an audit, and keeps beside their runs what it found.

    Args:
      config: of the audit.
      first: a cell of which a run has ended, and which the victim is known from.
    """

    def __init__(self, config: AuditConfig, first: Played):
        self.plain, self.place = first.undefended(first.seeds[0]), first.workdir(first.seeds[0])
        self.config, self._open = config, contextlib.ExitStack()
        self._victims = dict[str, tuple[Traced | Endpoint, str]]()

    @classmethod
    @contextlib.contextmanager
    def opened(cls, config: AuditConfig, first: Played) -> Iterator[Self]:
        """One whose victims are closed in the end."""
        made = cls(config, first)
        with made._open:
            yield made

    def victim(self, answers: str) -> tuple[Traced | Endpoint, str]:
        """The victim without a defence, and what it is in words.

        Args:
          answers: that it gives, "soft" or "hard".
        """
        if answers not in self._victims:
            config = dataclasses.replace(self.plain, labels=answers)
            victim, _, about = measures.undefended(config)
            if not isinstance(victim, Traced):
                self._open.enter_context(contextlib.closing(victim))
            self._victims[answers] = victim, about
        return self._victims[answers]

    @functools.cached_property
    def provider(self) -> Provider:
        """What its provider watches with."""
        return Provider(self.plain, self.place, self.config.detector_queries)

    def tested(self) -> measures.Tested:
        """The test images, and what the victim says of them."""
        return measures.tested(self.plain, self.place, self.victim(self.plain.labels)[0])

    def measure(self, played: Played) -> None:
        """Measures what can be of a cell that has been played."""
        self.alarms(played)
        for seed in played.seeds:
            self.outcome(played, seed)

    def alarms(self, played: Played) -> dict[str, Any] | None:
        """What detectors make of its first run; None where none is watched."""
        if not self.config.detector_queries or not played.seeds:
            return None
        seed = played.seeds[0]
        return kept(
            played.folder / "detectors.json",
            [seed, self.config.detector_queries],
            lambda: self.provider.watch(played.run_config(seed), played.ledger(seed)),
        )

    def outcome(self, played: Played, seed: int) -> dict[str, Any]:
        """What the clones of one of its runs are to the victim."""
        workdir, how = played.workdir(seed), self.config.transfer
        return kept(
            workdir / "outcome.json",
            [played.summary(seed)["clones_sha256"], dataclasses.asdict(how)],
            lambda: measures.outcome(
                played.undefended(seed), workdir, self.victim(played.cell.answers)[0], how
            ),
        )
