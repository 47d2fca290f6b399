"""A workdir: one process at a time, one run for ever.

`config.json` says what a run is: its configuration with nothing left to choose, and a hash of
the content of what it was given, victim and test images. A run that continues must be the same.
"""

import contextlib
import copy
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator
from typing import Any

from disguide_jax.config import Config, VictimTrainingConfig, spelled_out, to_dict
from disguide_jax.errors import UserError
from disguide_jax.files import atomic
from disguide_jax.settings import REQUIRED, get_value, set_value, settings

Hashes = dict[str, str]  # of contents, by what they are: "victim", "test_images", ...
PACKAGES = ("disguide_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out of a workdir. It ends with the process, however that ends.

    Raises:
      UserError: another process holds it, or the workdir cannot be written.
    """
    try:
        file = (workdir / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"{workdir} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"{workdir} is in use by another process (pid {holder}); "
                "wait for it, or choose another --workdir"
            ) from error
        except OSError as error:
            raise UserError(f"{workdir} cannot be locked: {error.strerror}") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(workdir: pathlib.Path) -> str:
    """The pid of the process that holds a workdir, or held it last; empty if none ever did."""
    try:
        return (workdir / ".lock").read_text().strip()
    except OSError:
        return ""


def read_started(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The content of config.json; None if there is no run yet.

    Raises:
      UserError: it cannot be read.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        started = json.loads(path.read_text())
        dict(started["config"])
        return started
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}; choose another --workdir") from error


def config_of(workdir: pathlib.Path) -> tuple[Config, Hashes]:
    """The configuration of the extraction that a workdir holds, and the hashes of its contents.

    Keys that came later have their defaults, and those that are no more are left out.

    Raises:
      UserError: there is none.
    """
    started = read_started(workdir) if workdir.is_dir() else None
    known, before = settings(Config), _flat(started["config"]) if started else {}
    required = [key for key, about in known.items() if about.default is REQUIRED]
    if started is None or not set(required) <= before.keys():
        raise UserError(f"{workdir.absolute()} holds no extraction: there is no config.json of one")
    config = Config(**{key: before[key] for key in required})
    for key in known.keys() & before.keys():
        set_value(config, key, before[key])
    return config, started.get("contents") or {}


def adopt[Kind: (Config, VictimTrainingConfig)](config: Kind, started: dict[str, Any]) -> Kind:
    """The configuration in which keys left to the program are what the run began with."""
    adopted, before = copy.deepcopy(config), _flat(started["config"])
    for key, known in settings(type(config)).items():
        left_open = known.auto and get_value(config, key) == known.default
        if left_open and not known.resume and key in before:
            set_value(adopted, key, before[key])
    return adopted


def refuse_other_config(
    before: dict[str, Any],
    config: Config | VictimTrainingConfig,
    workdir: pathlib.Path,
    *,
    extend: bool = False,
    ignoring: tuple[str, ...] = (),
) -> None:
    """Refuses to continue a workdir under another configuration.

    Args:
      before: the configuration that it was started with, as config.json has it.
      config: the one that is asked for.
      workdir: for the message.
      extend: accept a larger budget.
      ignoring: keys whose content is compared instead.

    Raises:
      UserError: lists the keys that differ and would change the result.
    """
    known = settings(type(config))
    if isinstance(config, Config):
        config = spelled_out(config)  # as what is in `before` is
    now = json.loads(json.dumps({key: get_value(config, key) for key in known}))
    defaults = {key: about.default for key, about in known.items() if about.default is not REQUIRED}
    # Keys that came later had their defaults.
    then = json.loads(json.dumps(defaults)) | _flat(before)
    harmless = {key for key, about in known.items() if about.resume} | set(ignoring)
    if now.get("guard") == "restart":  # what it makes anew depends on the lines it has seen
        harmless.discard("log_every_queries")
    # What is left to the program is what it was.
    defaults = json.loads(json.dumps(defaults))
    harmless |= {key for key, about in known.items() if about.auto and now[key] == defaults[key]}
    changed = {
        key: (then.get(key), now.get(key))
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and key not in harmless
    }
    budget = changed.get("query_budget")
    if budget and budget[1] > budget[0]:
        if extend:
            del changed["query_budget"]
            print(
                f"Extends the budget from {budget[0]:,} to {budget[1]:,} queries; the "
                "learning-rate schedule is computed anew for it, so the result is not that of a "
                "run with this budget from the start."
            )
        elif len(changed) == 1:
            raise UserError(
                f"{workdir} was started with config.query_budget={budget[0]:,}, now it is "
                f"{budget[1]:,}. To continue with more queries add --extend, which computes the "
                "schedule anew; or choose another --workdir."
            )
    if changed:
        lines = "".join(
            f"\n  config.{key}: {old!r}, now {new!r}" for key, (old, new) in changed.items()
        )
        raise UserError(
            f"{workdir} was started with another configuration:{lines}\n"
            "Use the same again, or another --workdir."
        )


def refuse_other_contents(
    before: Hashes | None, now: Hashes, where: dict[str, str], workdir: pathlib.Path
) -> None:
    """Refuses to continue a workdir with another victim, or to test on other images.

    Args:
      before: hashes that it was started with; None from before there were any.
      now: those of what is there now.
      where: what each was read from, for the message.
      workdir: for the message.

    Raises:
      UserError: names what has changed.
    """
    for what, value in now.items():
        if before and before.get(what, value) != value:
            raise UserError(
                f"{workdir} was started with another {what}: the content of {where[what]} has "
                f"changed (sha256 {before[what][:12]}, now {value[:12]}). Bring the old one back, "
                "or choose another --workdir."
            )


def write_started(
    workdir: pathlib.Path,
    config: Config | VictimTrainingConfig,
    contents: Hashes,
    started: dict[str, Any] | None,
) -> None:
    """Writes config.json; what it was started with stays, and later versions are added.

    Args:
      workdir: of the run.
      config: with nothing left to choose.
      contents: hashes of what it was given.
      started: what config.json held before, if anything.
    """
    here = provenance()
    content = {"config": to_dict(config), "contents": contents, **here}
    if started:
        first = {key: started.get(key) for key in here}
        resumed = started.get("resumed_with", [])
        if here != (resumed[-1] if resumed else first):
            resumed = [*resumed, here]
        content |= first | ({"resumed_with": resumed} if resumed else {})
    atomic.write_json(workdir / "config.json", content)


def read_log(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged.
    """
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def provenance() -> dict[str, Any]:
    """Versions of what computes, and the git commit, None where there is no checkout."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    commit = None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, or no checkout
        command = ["git", "rev-parse", "HEAD"]
        commit = subprocess.check_output(
            command, cwd=pathlib.Path(__file__).parent, stderr=subprocess.DEVNULL, text=True
        ).strip()
    return {"versions": versions, "git_commit": commit}


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
