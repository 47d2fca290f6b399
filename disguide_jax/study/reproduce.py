"""Makes a study of the paper: victims, then runs, then its table or figure."""

import pathlib
import shlex
import shutil
import sys
from collections.abc import Sequence

from disguide_jax import shipped
from disguide_jax.errors import UserError
from disguide_jax.files import weights
from disguide_jax.run import needs
from disguide_jax.study import cluster, flops, tables
from disguide_jax.study.launch import ROOT, Launcher, Task
from disguide_jax.study.paper import FULL, MEDIUM, REHEARSAL, SMALL, VICTIM_MARGIN, VICTIMS
from disguide_jax.study.results import Cell, Result, load_all, run_missing
from disguide_jax.study.studies import STUDIES

SCALES = (FULL, MEDIUM, SMALL, REHEARSAL)


def reproduce(
    study: str,
    *,
    scale: str,
    seeds: int,
    results: pathlib.Path,
    workdirs: pathlib.Path,
    only: Sequence[str] = (),
    data_dir: str = "",
    jobs: int | None = None,
    launcher: str = "local",
    slurm: Sequence[str] = (),
    dry_run: bool = False,
) -> None:
    """Runs what is missing, then writes the table or figure of all that has finished.

    Args:
      study: of STUDIES.
      scale: of SCALES.
      seeds: each cell is run with 0, 1, ... below it.
      results: where finished runs leave their summary and log, and where the study is written.
      workdirs: where runs have their workdirs.
      only: configurations whose runs are made; () makes those of all.
      data_dir: where the images lie, for every run and training.
      jobs: runs at a time; None is 1, and on a cluster as many as it lets.
      launcher: what runs them, of cluster.LAUNCHERS.
      slurm: submitit's parameters, each as KEY=VALUE.
      dry_run: only print the commands.

    Raises:
      UserError: a mistake in the arguments, a bad victim, or a run that failed.
    """
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}; it must be at least 1")
    launch = cluster.choose(launcher, jobs=jobs, slurm=slurm, folder=workdirs / "slurm")
    shown, rehearsal = STUDIES[study], scale == REHEARSAL
    sizes = FULL if rehearsal else scale
    cells = {cell: rehearsed(cell) if rehearsal else cell for cell in shown.cells[sizes] if cell}
    to_run = {c: run for c, run in cells.items() if not only or c.config in only}
    if unknown := set(only) - {cell.config for cell in cells}:
        known = ", ".join(dict.fromkeys(cell.config for cell in cells))
        raise UserError(f"--only {', '.join(unknown)}: {study} has {known}")
    if not dry_run:
        for run in to_run.values():
            print(f"{run}: {needs.say_needs(run.load(0))}")
    victims, logs = victims_of(to_run), workdirs / "victims"
    ready = prepare_victims(victims, launch, data_dir=data_dir, folder=logs, dry_run=dry_run)
    if not ready and not dry_run:
        print("The runs come after the victims: give the same command again when these are there.")
        return
    finished = run_missing(
        list(to_run.values()),
        range(seeds),
        results=results,
        workdirs=workdirs,
        least_hours=flops.least_extraction_hours,
        seeds_together=launcher == "local" and jobs in (None, 1),
        launcher=launch,
        extra=[f"--config.data_dir={data_dir}"] if data_dir else [],
        dry_run=dry_run,
    )
    if not finished:
        return
    found = {cell: load_all(results, run, range(seeds)) for cell, run in cells.items()}
    path = results / scale / study
    if shown.table:
        print(tables.write_table(path, *shown.table(sizes, found)))
    if shown.figure:
        shown.figure(sizes, found, path)
    if study == "fig5":
        ((cell, run),) = cells.items()
        save_samples(found[cell], path, results / run.folder / "seed0")


def rehearsed(cell: Cell) -> Cell:
    """The same at toy size: the victim's and the extraction's smoke variants, on noise."""
    sizes = ("query_budget", "replay.size")
    overrides = tuple((k, v) for k, v in cell.overrides if k not in sizes)
    script = shlex.split(cell.load(0).victim.made_by)[-1]
    path = f"victims/{pathlib.Path(script).stem}-smoke.safetensors"
    return Cell(REHEARSAL, f"{cell.config}:smoke", (*overrides, ("victim.weights", path)))


def victims_of(cells: dict[Cell, Cell]) -> dict[str, str]:
    """Weights of the victims that do not come with the package, and what makes them."""
    victims = {}
    for cell, run in cells.items():
        if made_by := cell.load(0).victim.made_by:
            variant = ":smoke" if run.config.endswith(":smoke") else ""
            victims[run.load(0).victim.weights] = made_by + variant
    return victims


def prepare_victims(
    victims: dict[str, str],
    launcher: Launcher,
    *,
    data_dir: str,
    folder: pathlib.Path,
    dry_run: bool,
) -> bool:
    """Trains the victims that are absent, and checks what all of them are worth.

    Returns whether all are there; on a cluster they come later.

    Raises:
      UserError: training failed, or a victim is so much worse than the paper's that a
        comparison with the paper's numbers would mean little.
    """
    ready = True
    for path, made_by in victims.items():
        if not pathlib.Path(path).exists():
            task = training(made_by, data_dir=data_dir, folder=folder, announced=not dry_run)
            ready &= launcher([task], watched=True, dry_run=dry_run)
        if not dry_run and pathlib.Path(path).exists():
            check_victim(path)
    return ready


def training(made_by: str, *, data_dir: str, folder: pathlib.Path, announced: bool) -> Task:
    """The task that makes a victim; `announced` says what it takes."""
    _, script, option, config = shlex.split(made_by)
    options = [f"--config.data_dir={data_dir}"] if data_dir else []
    name = pathlib.Path(config).name
    if announced:
        print(shlex.join(["python", script, option, config, *options]), flush=True)
        training = shipped.load(name.replace(".py", ""))
        hours = flops.least_hours(flops.training_flops(training), training.precision)
        print(f"That takes at least {hours:.2g} h: its FLOPs, as matrix products.", flush=True)
    command = (sys.executable, str(ROOT / script), option, str(ROOT / config), *options)
    return Task(f"the victim's training, {name}", command, folder / name.replace(":", "-"))


def check_victim(path: str) -> None:
    """Compares a victim with the paper's, where the paper has one of its name.

    Raises:
      UserError: it is much worse, or its file does not say how good it is.
    """
    recorded = weights.load_metadata(path).get("test_accuracy")
    if recorded is None and path not in VICTIMS:
        return
    if recorded is None:
        raise UserError(
            f"{path} does not say its accuracy on the test images, so that it cannot be held "
            "against the paper's victim; convert it again with\n  python "
            f"scripts/convert_victim.py IN.pt {shlex.quote(path)} --test_accuracy ACCURACY\n"
            "with what scripts/evaluate_victim.py measures, or train one: move the file away"
        )
    accuracy = 100 * float(recorded)
    print(f"{path}: {accuracy:.2f} % on the test images", flush=True)
    if accuracy < VICTIMS.get(path, 0.0) - VICTIM_MARGIN:
        raise UserError(
            f"{path} has {accuracy:.2f} % on the test images, and the paper's victim "
            f"{VICTIMS[path]:.2f} %; train a better one, or run its configuration by itself"
        )


def save_samples(found: Sequence[Result], path: pathlib.Path, folder: pathlib.Path) -> None:
    """Figure 5: the generator's images at the end of a run."""
    if found:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "samples.png", path.with_suffix(".png"))
