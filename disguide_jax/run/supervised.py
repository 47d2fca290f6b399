"""Trains a victim on real images: SGD, a stepwise learning rate, random crops and flips.

`configs/victim_*.py` hold the recipes. The data set lies on the device as uint8 and the
augmentation runs there. The result is that of the last epoch: nothing is selected by test
accuracy. On the CPU of one machine, with one version of JAX, a command always gives the same
weights, bit for bit, whether or not it was interrupted.
"""

import contextlib
import copy
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disguide_jax import models, paths
from disguide_jax.config import VictimTrainingConfig, to_dict, validate
from disguide_jax.core import backend, pixels
from disguide_jax.core.exchange import make_call
from disguide_jax.core.supervised import (
    Images,
    TrainStep,
    VictimState,
    init_state,
    make_optimizer,
    make_train_step,
)
from disguide_jax.core.types import Array, Net, Stage, Variables
from disguide_jax.errors import Stopped, UserError
from disguide_jax.files import atomic, datasets, weights
from disguide_jax.files import workdir as workdir_files
from disguide_jax.files.checkpoint import Checkpoints
from disguide_jax.run import recorder, session, signals
from disguide_jax.run.asked import task_of
from disguide_jax.run.loop import CHECKPOINT, EVALUATE, LOG, Loop, Sums
from disguide_jax.run.program import compute_dtype
from disguide_jax.settings import get_value, settings
from disguide_jax.victims.network import Victim, make_victim


class Training(NamedTuple):
    """What a training is made of and does not change."""

    config: VictimTrainingConfig  # with nothing left to choose
    info: datasets.Info
    train_set: Images
    test_set: Images
    net: Net
    stage: Stage
    steps_per_epoch: int
    init: Callable[[], VictimState]
    train_step: TrainStep


def resolve(config: VictimTrainingConfig) -> VictimTrainingConfig:
    """The configuration with nothing left to choose.

    Raises:
      UserError: a value is wrong.
    """
    validate(config)
    config = copy.deepcopy(config)
    config.width = config.width or models.usual_width(config.model)
    if config.precision == "auto":
        config.precision = backend.usual_dtype().name
    return config


def make_evaluate(net: Net, info: datasets.Info) -> Callable[[Variables, Images], float]:
    """A function that gives the accuracy on a test set, through the oracle that clones ask."""

    @jax.jit
    def count(victim: Victim, images: Array, labels: Array) -> Array:
        return (victim(pixels.decode(images)) == labels).sum()

    def evaluate(variables: Variables, test_set: Images) -> float:
        victim = make_victim(net, variables, mean=info.mean, std=info.std, hard_labels=True)
        total, batch_size = len(test_set.labels), backend.tested_at_once(info.size)
        batches = (slice(i, i + batch_size) for i in range(0, total, batch_size))
        counts = [count(victim, test_set.images[b], test_set.labels[b]) for b in batches]
        return sum(map(int, counts)) / total

    return evaluate


def train_victim(config: VictimTrainingConfig, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains a victim, or continues the training that `workdir` holds, and writes its weights.

    The workdir gets config.json, metrics.jsonl with one line per epoch, checkpoints and, at
    the end, summary.json.

    Args:
      config: of the training.
      workdir: made if absent. A finished one is left as it is.

    Returns:
      What summary.json holds.

    Raises:
      UserError: a mistake in the configuration or the files, or a loss that is not finite.
      Stopped: a signal asked for it; the training is saved.
    """
    validate(config)
    models.usual_width(config.model)  # refuses what is no model
    workdir, output, made_by = paths.expanded(workdir), output_path(config), recipe(config)
    summary_path = workdir / "summary.json"
    train_set, test_set = (load(config, split) for split in ("train", "test"))
    contents = {
        f"{name} images": datasets.fingerprint(split)
        for name, split in (("training", train_set), ("test", test_set))
    }
    places = dict.fromkeys(contents, f"data set {config.dataset}")
    config, started = session.take_up(workdir, config, contents, places)
    if started and summary_path.exists() and output.exists():
        print(f"{workdir} is finished, its weights are {output}. Nothing to do.")
        return json.loads(summary_path.read_text())
    refuse_to_overwrite(output, made_by)

    training = build(config, train_set, test_set)
    with session.opened(workdir) as saved:
        session.make_folder(output.parent, "config.output")
        restored = saved.restore(jax.eval_shape(training.init))
        state, history = restored or (training.init(), new_history(contents))
        workdir_files.refuse_other_contents(history["contents"], contents, places, workdir)
        print(describe(training, state), f"workdir {workdir}", sep="\n", flush=True)
        workdir_files.write_started(workdir, training.config, contents, started)
        state = train_epochs(training, state, history, saved, workdir)
        summary = summarise(training, history["lines"])
        refuse_to_overwrite(output, made_by)
        weights.save_state_dict(
            output,
            weights.to_state_dict(jax.device_get(state.network.variables)),
            weights_metadata(training, summary["test_accuracy"], made_by),
        )
        atomic.write_json(summary_path, summary)
    print(
        f"test accuracy {summary['test_accuracy']:.4f} after {config.epochs} epochs, "
        f"{summary['wall_seconds'] / 60:.1f} minutes: {output}",
        flush=True,
    )
    return summary


def new_history(contents: dict[str, str]) -> dict[str, Any]:
    """What the host of a training knows before its first epoch, saved with checkpoints."""
    return {"lines": [], "log_bytes": 0, "sums": {"values": {}, "rounds": 0}, "contents": contents}


def build(
    config: VictimTrainingConfig, train_set: datasets.Split, test_set: datasets.Split
) -> Training:
    """Brings the images to the device and makes everything else.

    Raises:
      UserError: a value is wrong, or there are not enough images.
    """
    config = resolve(config)
    info = datasets.describe(config.dataset, config.data_dir)
    num_images = len(train_set.labels)
    steps_per_epoch = num_images // config.batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"config.batch_size is {config.batch_size:,}; it must be at most the number of "
            f"training images, {num_images:,}"
        )
    net = models.make_classifier(
        config.model,
        width=config.width,
        num_classes=info.num_classes,
        size=info.size,
        channels=info.channels,
        dtype=compute_dtype(config.precision),
    )
    tx = make_optimizer(config, steps_per_epoch)
    return Training(
        config=config,
        info=info,
        train_set=Images(*map(jnp.asarray, train_set)),
        test_set=Images(*map(jnp.asarray, test_set)),
        net=net,
        stage=Stage("training", config.epochs * steps_per_epoch, queries=0),
        steps_per_epoch=steps_per_epoch,
        init=jax.jit(lambda: init_state(config, net, tx, num_images)),
        train_step=make_train_step(config, net, tx, task_of(info)),
    )


def train_epochs(
    training: Training,
    state: VictimState,
    history: dict[str, Any],
    saved: Checkpoints,
    workdir: pathlib.Path,
) -> VictimState:
    """Trains the epochs that are left; logs, evaluates and saves on the way.

    Args:
      training: what is trained on what.
      state: after the epochs of `history`.
      history: from `new_history` or a checkpoint; its lines are added to.
      saved: where checkpoints go.
      workdir: where `metrics.jsonl` goes.
    """
    config, steps = training.config, training.steps_per_epoch
    rounds_per_call = min(steps, backend.rounds_a_call())
    train_call = make_call(training.train_step, looped=rounds_per_call > 1)
    evaluate, sums = make_evaluate(training.net, training.info), Sums(**history["sums"])
    every = {
        LOG: steps,
        EVALUATE: steps * config.evaluate_every_epochs,
        CHECKPOINT: steps * config.checkpoint_every_epochs,
    }
    with contextlib.ExitStack() as stack:
        done = {"num_bytes": history["log_bytes"], "step": len(history["lines"])}
        log = recorder.MetricsLog(workdir, axis="epoch", **done)
        bar = recorder.Bar(
            total=config.epochs * steps * config.batch_size,
            done=int(state.round) * config.batch_size,
            unit="image",
        )
        stack.enter_context(contextlib.closing(log))
        stack.enter_context(contextlib.closing(bar))
        stop = stack.enter_context(signals.stop_requests())
        loop = Loop(
            {"training": lambda state, num: train_call(state, training.train_set, num)},
            (training.stage,),
            lambda stage: every,
            rounds_per_call=rounds_per_call,
            state=state,
            sums=sums,
            stop=stop,
        )
        began = time.perf_counter()
        for happened in loop:
            bar.advance(happened.round * config.batch_size)
            epoch = happened.round // steps
            if LOG in happened.due:
                line: dict[str, Any] = sums.take()
                line["time/train_seconds"] = time.perf_counter() - began
                if EVALUATE in happened.due:
                    accuracy = evaluate(loop.state.network.variables, training.test_set)
                    line["eval/accuracy"] = accuracy
                line["time/seconds"] = time.perf_counter() - began
                began = time.perf_counter()
                history["lines"].append(line)
                log.write(epoch, line)
                report(bar, line, epoch, config.epochs)
            if CHECKPOINT in happened.due or (happened.due and stop):
                history |= {"log_bytes": log.sync(), "sums": vars(sums).copy()}
                saved.save(loop.state, history)
            if happened.due and stop and not happened.finished:
                saved.wait()
                raise Stopped(stop[0], f"{epoch} epochs")
        return loop.state


def describe(training: Training, state: VictimState) -> str:
    """What the training is about to do."""
    config, done = training.config, int(state.round) // training.steps_per_epoch
    num_params = sum(x.size for x in jax.tree.leaves(state.network.params))
    rates = f"{config.learning_rate:g}, x{config.decay_factor:g} at " + ", ".join(
        f"{fraction:.0%}" for fraction in config.decay_at
    )
    rows = {
        "victim": f"{config.model} of width {config.width}, {num_params:,} parameters",
        "images": f"{len(training.train_set.labels):,} of {config.dataset}, "
        f"tested on {len(training.test_set.labels):,}",
        "epochs": f"{config.epochs} of {training.steps_per_epoch} batches of {config.batch_size}"
        + (f"; {done} are done" if done else ""),
        "rate": rates,
        "device": f"{backend.describe()}, {config.precision}",
        "weights": str(output_path(config)),
    }
    return "\n".join(f"{name:<7} {value}" for name, value in rows.items())


def load(config: VictimTrainingConfig, split: str) -> datasets.Split:
    """The first `config.train_images` or `.test_images` of a split (0: all of them).

    Raises:
      UserError: there are not so many, or no such data.
    """
    num_images = get_value(config, f"{split}_images")
    images, labels = datasets.load(config.dataset, split, config.data_dir)
    if num_images > len(images):
        raise UserError(
            f"config.{split}_images is {num_images:,}; it must be at most {len(images):,}, "
            f"which is what {config.dataset} has"
        )
    keep = slice(num_images or None)
    return datasets.Split(images[keep], labels[keep].astype(np.int32))


def output_path(config: VictimTrainingConfig) -> pathlib.Path:
    """The file that the weights go to; extraction configurations look for the default one."""
    model = config.model.rpartition(":")[2]
    return paths.expanded(config.output or f"victims/{config.dataset}-{model}.safetensors")


def refuse_to_overwrite(output: pathlib.Path, made_by: dict[str, Any]) -> None:
    """Refuses to replace a file that another recipe made.

    Raises:
      UserError: there is such a file.
    """
    if not output.exists():
        return
    try:
        recorded = weights.load_metadata(output).get("recipe")
    except UserError:
        recorded = None
    if recorded != json.dumps(made_by):
        raise UserError(
            f"config.output: {output} exists and is not of this training; move it away or "
            "name another file: --config.output=FILE.safetensors"
        )


def recipe(config: VictimTrainingConfig) -> dict[str, Any]:
    """The part of the configuration, as it was asked for, that decides about the weights."""
    known = settings(VictimTrainingConfig)
    return {
        key: value
        for key, value in to_dict(config).items()
        if not known[key].resume and not known[key].reports
    }


def weights_metadata(
    training: Training, test_accuracy: float, made_by: dict[str, Any]
) -> dict[str, str]:
    """What the file of weights says about itself; everything but names is JSON."""
    config = training.config
    return {
        "model": config.model,
        "width": json.dumps(config.width),
        "dataset": config.dataset,
        "mean": json.dumps(training.info.mean),
        "std": json.dumps(training.info.std),
        "test_accuracy": json.dumps(test_accuracy),
        "recipe": json.dumps(made_by),
    }


def summarise(training: Training, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of summary.json; the accuracies are those of the last epoch."""
    return {
        "config": to_dict(training.config),
        "weights": str(output_path(training.config)),
        "epochs": training.config.epochs,
        "train_images": len(training.train_set.labels),
        "test_images": len(training.test_set.labels),
        "train_accuracy": lines[-1]["train/accuracy"],
        "test_accuracy": lines[-1]["eval/accuracy"],
        "wall_seconds": sum(line["time/seconds"] for line in lines),
    }


def report(bar: recorder.Bar, line: dict[str, Any], epoch: int, epochs: int) -> None:
    """Says how an epoch went: beside the bar on a terminal, in a line of its own elsewhere."""
    parts = [f"epoch {epoch} of {epochs}", f"loss {line['train/loss']:.4f}"]
    if "eval/accuracy" in line:
        parts.append(f"test accuracy {line['eval/accuracy']:.4f}")
    bar.show(parts, f"{line['time/seconds']:.1f} s")
