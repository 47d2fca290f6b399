"""The runs of a cell: played, or continued, and what has become of them."""

import contextlib
import copy
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from disguide_jax.audit_config import AuditConfig
from disguide_jax.config import Config
from disguide_jax.errors import UserError
from disguide_jax.files import transfer
from disguide_jax.run import extraction, pictures, seeds
from disguide_jax.run.compiled import FunctionsOf
from disguide_jax.study.auditing import bought, cells
from disguide_jax.study.auditing.cells import Cell


class Played(NamedTuple):
    """What has become of the runs of a cell."""

    cell: Cell
    folder: pathlib.Path
    config: Config | None  # of all its runs; None: it cannot be
    plain: Config | None  # the same without a defence
    state: str  # "done", "failed" or "cannot"
    why: str | None  # it is not done

    def workdir(self, seed: int) -> pathlib.Path:
        """The workdir of a run."""
        return self.folder / f"seed{seed}"

    def bought(self, seed: int) -> pathlib.Path | None:
        """Where the images of a run lie that were labelled before it; None of a method."""
        is_method = self.cell.attack not in bought.KINDS
        return None if is_method else self.folder / "bought" / f"seed{seed}"

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those whose runs have ended."""
        asked_for = self.config.seeds if self.config else ()
        return tuple(s for s in asked_for if (self.workdir(s) / "summary.json").exists())

    def summary(self, seed: int) -> dict[str, Any]:
        """What a run that has ended has in summary.json."""
        return json.loads((self.workdir(seed) / "summary.json").read_text())

    def run_config(self, seed: int) -> Config:
        """The configuration of a run of a method, or of the one that a baseline stands beside.

        Raises:
          AssertionError: the cell cannot be.
        """
        assert self.config is not None
        return dataclasses.replace(self.config, seed=seed, seeds=())

    def undefended(self, seed: int) -> Config:
        """The same run of the victim without a defence and its numbers.

        Raises:
          AssertionError: the cell cannot be.
        """
        assert self.plain is not None
        return dataclasses.replace(copy.deepcopy(self.plain), seed=seed, seeds=())

    def ledger(self, seed: int) -> pathlib.Path | None:
        """The ledger with the queries of a run; None where its rounds must be played again."""
        place = self.bought(seed)
        if place is None and self.run_config(seed).victim.endpoint:
            place = self.workdir(seed)
        return place / "ledger" if place else None

    def pictures(self) -> list[pathlib.Path]:
        """The last picture of the queries of the last run, if one has ended."""
        if not self.seeds:
            return []
        place = self.bought(self.seeds[-1])
        found = place or self.workdir(self.seeds[-1]) / "samples"
        return sorted(found.glob("*.png"))[-1:]


def play(audit: AuditConfig, cell: Cell, folder: pathlib.Path, functions_of: FunctionsOf) -> Played:
    """Runs a cell with every seed; runs that have ended are left as they are.

    Args:
      audit: that it belongs to.
      cell: to be run.
      folder: of its workdirs, and of output.txt, what its runs have said.
      functions_of: of its runs.

    Raises:
      Stopped: a signal asked for it; what has begun is saved.
    """
    try:
        config = cells.config_of(audit, cell)
        plain = cells.config_of(audit, cell._replace(defence=""))
    except UserError as error:
        return Played(cell, folder, None, None, "cannot", str(error))
    folder.mkdir(parents=True, exist_ok=True)
    played = Played(cell, folder, config, plain, "done", None)
    try:
        with _said_in(folder / "output.txt"):
            if cell.attack in bought.KINDS:
                _play_bought(played, functions_of)
            else:
                seeds.train_and_evaluate(config, folder, functions_of=functions_of)
    except UserError as error:
        return played._replace(state="failed", why=str(error))
    return played


def _play_bought(played: Played, functions_of: FunctionsOf) -> None:
    """Has images labelled and learns from them, one seed after the other.

    Raises:
      UserError: runs failed, and the others have ended.
    """
    assert played.config is not None
    failures = []
    for seed in played.config.seeds:
        try:
            _play_bought_once(played, seed, functions_of)
        except UserError as error:
            failures.append(f"seed {seed}: {error}")
    if failures:
        raise UserError("\n".join(failures))


def _play_bought_once(played: Played, seed: int, functions_of: FunctionsOf) -> None:
    place = played.bought(seed)
    assert place is not None
    config = bought.buy(played.run_config(seed), played.cell.attack, place)
    shown = transfer.load(config.offline.queries).images
    shown = shown[: pictures.num_images(shown.shape[1])]
    pictures.save_image_grid(place / "samples.png", shown)
    extraction.train_and_evaluate(config, played.workdir(seed), functions_of=functions_of)


@contextlib.contextmanager
def _said_in(path: pathlib.Path) -> Iterator[None]:
    with path.open("a") as file, contextlib.redirect_stdout(file):
        yield
