"""What is known of the victim of an audit, made once and when it is needed, and used to measure."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any, Self

from disguide_jax.audit_config import AuditConfig
from disguide_jax.config import Config
from disguide_jax.run.compiled import FunctionsOf
from disguide_jax.study.auditing import measures
from disguide_jax.study.auditing.kept import kept
from disguide_jax.study.auditing.provider import Provider
from disguide_jax.study.auditing.runs import Played
from disguide_jax.victims.defences import Traced
from disguide_jax.victims.host import Endpoint


class Measurer:
    """Measures cells of an audit, and keeps beside their runs what it found.

    The first cell that it measures, of which a run has ended, is what it knows the victim from.

    Args:
      config: of the audit.
      functions_of: of its runs.
    """

    def __init__(self, config: AuditConfig, functions_of: FunctionsOf):
        self.config, self._functions_of = config, functions_of
        self._first: Played | None = None
        self._open = contextlib.ExitStack()
        self._victims = dict[str, tuple[Traced | Endpoint, str]]()

    @classmethod
    @contextlib.contextmanager
    def opened(cls, config: AuditConfig, functions_of: FunctionsOf) -> Iterator[Self]:
        """One whose victims are closed in the end."""
        made = cls(config, functions_of)
        with made._open:
            yield made

    @property
    def first(self) -> Played:
        """The first cell that was measured."""
        assert self._first is not None
        return self._first

    @functools.cached_property
    def plain(self) -> Config:
        """A run of the victim without a defence."""
        return self.first.undefended(self.first.seeds[0])

    @property
    def _place(self) -> pathlib.Path:
        return self.first.workdir(self.first.seeds[0])

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
        most = self.config.detector_queries
        return Provider(self.plain, self._place, most, self._functions_of)

    def tested(self) -> measures.Tested:
        """The test images, and what the victim says of them."""
        return measures.tested(self.plain, self._place, self.victim(self.plain.labels)[0])

    def measure(self, played: Played) -> None:
        """Measures what can be of a cell of which a run has ended."""
        self._first = self._first or played
        self.alarms(played)
        for seed in played.seeds:
            self.outcome(played, seed)

    def alarms(self, played: Played) -> dict[str, Any] | None:
        """What detectors make of the first run of a cell; None where none is watched."""
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
