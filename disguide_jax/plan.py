"""What a run is made of, and what can be said of it and refused before its first round."""

import contextlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shutil
import subprocess
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from disguide_jax import checkpoint, convert, data, evaluate, optim, steps, victim
from disguide_jax.config import REQUIRED, Config, VictimTrainingConfig, settings, to_dict
from disguide_jax.errors import UserError
from disguide_jax.state import Networks, Optimizers, Stage, TrainState, Variables


class Run(NamedTuple):
    """What a run is made of and does not change."""

    config: Config
    stages: tuple[Stage, ...]
    networks: Networks
    tx: Optimizers
    victim: victim.Victim
    victim_model: convert.Architecture
    test_set: evaluate.TestSet
    dtype: jnp.dtype
    rounds_per_call: int  # 0: not looped on the device
    template: TrainState  # shapes

    @property
    def num_rounds(self) -> int:
        """Of all stages."""
        return sum(stage.num_rounds for stage in self.stages)

    @property
    def queries(self) -> int:
        """Sent by the end of the run; the budget, or a little less."""
        return steps.queries_after(self.stages, self.num_rounds)


def build(config: Config) -> Run:
    """Loads the victim and the test images and makes everything else, on the device."""
    info = data.describe(config.dataset, config.data_dir)
    dtype = compute_dtype(config.precision)
    net_dtype = None if dtype == jnp.float32 else dtype  # None: as the weights are
    net, variables, victim_model = victim.load_network(
        config.victim,
        num_classes=info.num_classes,
        channels=info.channels,
    )
    test = data.load(config.dataset, "test", config.data_dir)
    oracle = victim.make_victim(
        net,
        variables,
        mean=_per_channel(config.victim.mean or info.mean, info.channels, "victim.mean"),
        std=_per_channel(config.victim.std or info.std, info.channels, "victim.std"),
        hard_labels=config.labels == "hard",
        knows_transform=config.victim.input_space == "post-transform",
    )
    networks, tx, template = make_trained(config, info, net_dtype)
    on_cpu = jax.default_backend() == "cpu"
    return Run(
        config=config,
        stages=steps.stages(config),
        networks=networks,
        tx=tx,
        victim=oracle,
        victim_model=victim_model,
        test_set=evaluate.make_test_set(oracle, test.images, test.labels),
        dtype=dtype,
        rounds_per_call=config.rounds_per_call or (0 if on_cpu else 20),
        template=template,
    )


def make_trained(
    config: Config, info: data.Info, dtype: Any
) -> tuple[Networks, Optimizers, TrainState]:
    """What is trained, and the shapes of the state."""
    sizes = {"num_classes": info.num_classes, "channels": info.channels}
    networks = steps.make_networks(config, dtype=dtype, **sizes)
    tx = steps.make_optimizers(config)
    state = jax.eval_shape(lambda: steps.init_state(config, networks, tx, **sizes))
    return networks, tx, state


def say_needs(config: Config) -> str:
    """What a run needs of the machine, known without victim and images."""
    info = data.describe(config.dataset, config.data_dir)
    template = make_trained(config, info, None)[2]
    return (
        f"{_size(_num_bytes(template))} on the device and what its rounds take, "
        f"{_size(_bytes_on_disk(config, template))} of disk"
    )


def compute_dtype(precision: str) -> jnp.dtype:
    """What `config.precision` means on this backend."""
    if precision == "auto":
        precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(precision)


def describe(run: Run, workdir: pathlib.Path) -> str:
    """What the run is about to do."""
    config, template = run.config, run.template
    left_over = config.query_budget - run.queries
    rounds = (
        f"{stage.num_rounds:,} rounds of {stage.queries_per_round:,}"
        + (f" ({stage.name})" if len(run.stages) > 1 else "")
        for stage in run.stages
    )
    on = f"{jax.devices()[0].device_kind} ({jax.default_backend()})"
    model = run.victim_model
    accuracy = evaluate.victim_accuracy(run.test_set)
    num_images = evaluate.num_images(run.test_set)
    replay = template.replay
    rows = {
        "method": f"{config.method}, {config.labels} labels, seed {config.seed}",
        "victim": f"{model.model}, {_count(run.victim.variables)} parameters, {accuracy:.4f} on "
        f"{num_images:,} {config.dataset} test images ({config.victim.weights})",
        "clones": f"{config.num_clones} x {config.clones.model}, "
        f"{_count(template.clones, share=config.num_clones)} parameters each",
        "generator": f"{_count(template.generator)} parameters",
        "budget": f"{config.query_budget:,} queries: {', '.join(rounds)}"
        + (f", {left_over:,} left over and not sent" if left_over else ""),
        "rates": _rates(run),
        "replay": f"{len(replay.images):,} images in {config.replay.dtype}, "
        f"{_size(_num_bytes(replay))} on the device"
        if steps.method_of(config).KEEPS_REPLAY
        else f"none in {config.method}",
        "device": f"{on}, {run.dtype.name}, "
        + (f"{run.rounds_per_call} rounds a call" if run.rounds_per_call else "1 round a call"),
        "disk": f"at most {_size(_bytes_on_disk(config, template))} of checkpoints",
        "workdir": str(workdir),
    }
    return "\n".join(f"{name:<10} {value}" for name, value in rows.items())


def _rates(run: Run) -> str:
    """The learning rates that the last stage begins with, and what becomes of them."""
    config = run.config
    generator, clones = config.generator.learning_rate, config.clones.learning_rate
    if config.method == "dfms":
        return f"generator {generator:g}, clones {clones:g} falling to 0 along a cosine"
    rates = f"generator {generator:g}, clones {clones:g}; "
    if config.schedule.shape == "cosine":
        return rates + "both fall to 0 along a cosine"
    num_rounds = run.stages[-1].num_rounds
    drops = optim.schedule_boundaries(config.schedule, num_rounds)
    said = (f"x{scale:.2g} after {at:,} rounds" for at, scale in drops.items() if at < num_rounds)
    return rates + (", ".join(said) or "both stay")


def check_fits(run: Run, workdir: pathlib.Path) -> None:
    """Refuses a run that the device's memory or the disk cannot hold.

    Raises:
      UserError: with both numbers.
    """
    needed = _num_bytes(run.template)
    available = _device_memory()
    if available and needed > available:
        raise UserError(
            f"the run needs {_size(needed)} on the device, "
            f"{_size(_num_bytes(run.template.replay))} of it for "
            f"config.replay.size={run.config.replay.size:,} in "
            f"config.replay.dtype={run.config.replay.dtype}; there are {_size(available)}. "
            "Choose a smaller replay.size, or uint8."
        )
    needed = _bytes_on_disk(run.config, run.template)
    existing = next(p for p in (workdir.absolute(), *workdir.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    held = sum(f.stat().st_size for f in (workdir / "checkpoints").rglob("*") if f.is_file())
    if needed > free + held:
        raise UserError(
            f"checkpoints in {workdir} need up to {_size(needed)}; {_size(free)} are free there. "
            "Choose another --workdir, a smaller replay.size, or replay.dtype=uint8."
        )


def refuse_other_config(
    started_with: dict,
    config: Config | VictimTrainingConfig,
    workdir: pathlib.Path,
    *,
    extend: bool,
) -> None:
    """Refuses to continue a workdir under another configuration.

    Raises:
      UserError: lists the keys that differ and would change the result.
    """
    now = _flat(json.loads(json.dumps(to_dict(config))))
    known = settings(type(config))
    defaults = {key: about.default for key, about in known.items() if about.default is not REQUIRED}
    # Keys that came later had their defaults.
    before = json.loads(json.dumps(defaults)) | _flat(started_with)
    harmless = {key for key, about in known.items() if about.resume}
    if now.get("guard") == "restart":  # what it makes anew depends on the lines it has seen
        harmless.discard("log_every_queries")
    changed = {
        key: (before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in harmless
    }
    if "query_budget" in changed and changed["query_budget"][1] > changed["query_budget"][0]:
        if extend:
            del changed["query_budget"]
            print(
                f"Extends the budget from {before['query_budget']:,} to "
                f"{now['query_budget']:,} queries; the learning-rate schedule is computed "
                "anew for it, so the result is not that of a run with this budget from the start."
            )
        elif len(changed) == 1:
            raise UserError(
                f"{workdir} was started with config.query_budget={before['query_budget']:,}, "
                f"now it is {now['query_budget']:,}. To continue with more queries add "
                "--extend, which computes the schedule anew; or choose another --workdir."
            )
    if changed:
        lines = "".join(
            f"\n  config.{k}: {old!r}, now {new!r}" for k, (old, new) in changed.items()
        )
        raise UserError(
            f"{workdir} was started with another configuration:{lines}\n"
            "Use the same again, or another --workdir."
        )


def read_started_config(workdir: pathlib.Path) -> dict | None:
    """The configuration that a workdir was started with; None if it is new.

    Raises:
      UserError: it cannot be read.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}; choose another --workdir") from error


def provenance(config: Config | VictimTrainingConfig) -> dict[str, Any]:
    """The content of config.json: the resolved configuration, versions, git commit."""
    packages = ("disguide_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    commit = None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, or no checkout
        command = ["git", "rev-parse", "HEAD"]
        commit = subprocess.check_output(
            command, cwd=pathlib.Path(__file__).parent, stderr=subprocess.DEVNULL, text=True
        ).strip()
    return {
        "config": to_dict(config),
        "versions": versions,
        "git_commit": commit,
    }


def _per_channel(values: tuple[float, ...], channels: int, key: str) -> tuple[float, ...]:
    if len(values) != channels:
        raise UserError(
            f"config.{key} is {values}; it must have one value for each of {channels} channels"
        )
    return tuple(values)


def _flat(nested: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _count(variables: Variables, share: int = 1) -> str:
    return f"{sum(math.prod(x.shape) for x in jax.tree.leaves(variables.params)) // share:,}"


def _num_bytes(tree: Any) -> int:
    leaves = (x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def _bytes_on_disk(config: Config, template: TrainState) -> int:
    return checkpoint.bytes_on_disk(
        template, interval=config.checkpoint_every_queries, budget=config.query_budget
    )


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"


def _device_memory() -> int | None:
    """Bytes that the device, or on the CPU the machine, can hold; None where nobody says."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    if jax.default_backend() == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
