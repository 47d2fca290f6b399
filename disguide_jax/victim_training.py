"""Trains a victim on real images: SGD, a stepwise learning rate, random crops and flips.

`configs/victim_*.py` hold the recipes. The data set lies on the device as uint8 and the
augmentation runs there. The result is that of the last epoch: nothing is selected by test
accuracy. On the CPU of one machine, with one version of JAX, a command always gives the same
weights, bit for bit, whether or not it was interrupted.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tqdm
from flax import struct

from disguide_jax import (
    checkpoint,
    convert,
    data,
    losses,
    models,
    optim,
    plan,
    replay,
    train,
    writers,
)
from disguide_jax.config import ScheduleConfig, VictimTrainingConfig, settings, validate
from disguide_jax.errors import UserError, disk_errors
from disguide_jax.evaluate import to_float
from disguide_jax.replay import Replay
from disguide_jax.state import Array, Key, Metrics, Net, Variables
from disguide_jax.updates import augment
from disguide_jax.victim import Victim, make_victim

ORDER, AUGMENTATION = range(2)  # streams of random numbers


class Images(NamedTuple):
    """A data set's split on the device."""

    images: Array  # [M, 32, 32, channels] uint8
    labels: Array  # [M] int32


@struct.dataclass
class VictimState:
    """Everything a training step reads and writes."""

    step: Array  # [] int32, updates made
    key: Key  # root key; those of epochs and steps are folded in
    variables: Variables
    opt_state: optax.OptState

    @property
    def round(self) -> Array:
        """What checkpoints are named by."""
        return self.step

    @property
    def queries(self) -> Array:
        """None: nobody is asked."""
        return jnp.zeros((), jnp.int32)

    @property
    def replay(self) -> Replay:
        """Nothing: checkpoints would save its entries apart."""
        nothing = jax.ShapeDtypeStruct((1,), jnp.uint8)
        return replay.init(1, nothing, nothing)


TrainStep = Callable[[VictimState, Images, Array], tuple[VictimState, Metrics]]


class Run(NamedTuple):
    """What a training is made of and does not change."""

    config: VictimTrainingConfig
    info: data.Info
    train_set: Images
    test_set: Images
    net: Net
    dtype: jnp.dtype
    steps_per_epoch: int
    init: Callable[[], VictimState]
    train_step: TrainStep


class Stopped(Exception):  # noqa: N818
    """The training was asked to stop and is saved; `signum` is the signal that asked."""

    def __init__(self, signum: int, epoch: int):
        super().__init__(f"Stopped after {epoch} epochs; everything is saved.")
        self.signum = signum


def draw_order(key: Key, epoch: Array | int, num_images: int, batch_size: int) -> Array:
    """The images of every batch of an epoch, [B, N]: each image at most once.

    Shapes must be static, so the images that would make a smaller last batch are left out;
    they differ from epoch to epoch.
    """
    key = jax.random.fold_in(jax.random.fold_in(key, epoch), ORDER)
    num_batches = num_images // batch_size
    order = jax.random.permutation(key, num_images)
    return order[: num_batches * batch_size].reshape(num_batches, batch_size)


def make_optimizer(
    config: VictimTrainingConfig, steps_per_epoch: int
) -> optax.GradientTransformation:
    """SGD with momentum; its learning rate falls at fractions of all updates."""
    decay = ScheduleConfig(fractions=config.decay_at, factor=config.decay_factor)
    boundaries = optim.schedule_boundaries(decay, config.epochs * steps_per_epoch)
    schedule = optax.piecewise_constant_schedule(config.learning_rate, boundaries)
    return optim.sgd(schedule, momentum=config.momentum, weight_decay=config.weight_decay)


def init_state(
    config: VictimTrainingConfig, net: Net, tx: optax.GradientTransformation
) -> VictimState:
    """A fresh state: an initialised network and its optimiser."""
    init_key, root = jax.random.split(jax.random.key(config.seed))
    variables = net.init(init_key)
    return VictimState(jnp.zeros((), jnp.int32), root, variables, tx.init(variables.params))


def make_train_step(
    config: VictimTrainingConfig, net: Net, tx: optax.GradientTransformation, info: data.Info
) -> TrainStep:
    """The pure function (state, train set, rows [N]) -> (state, metrics) of one update.

    Rows are indices into the train set. The metrics are sums over the batch.
    """
    mean, std = (jnp.asarray(x).reshape(1, 1, 1, -1) for x in (info.mean, info.std))

    def train_step(state: VictimState, train_set: Images, rows: Array) -> tuple:
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), AUGMENTATION)
        # Black comes in before the normalisation, as in the usual PyTorch recipe.
        images = augment(key, train_set.images[rows], padding=config.crop_padding, flip=config.flip)
        images = (images.astype(jnp.float32) / 255 - mean) / std
        labels = train_set.labels[rows]

        def mean_loss(params: Any) -> tuple[Array, tuple[Any, Array]]:
            variables = state.variables._replace(params=params)
            logits, batch_stats = net.apply(variables, images, train=True)
            loss = losses.hard_cross_entropy(logits, labels=labels).mean()
            return loss, (batch_stats, (jnp.argmax(logits, axis=-1) == labels).sum())

        params = state.variables.params
        value_and_grad = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, (batch_stats, num_correct)), grads = value_and_grad(params)
        updates, opt_state = tx.update(grads, state.opt_state, params)
        variables = Variables(optax.apply_updates(params, updates), batch_stats)
        state = state.replace(step=state.step + 1, variables=variables, opt_state=opt_state)
        return state, {"loss": loss * len(rows), "accuracy": num_correct}

    return train_step


def make_train_call(train_step: TrainStep, *, looped: bool) -> Callable:
    """Compiles the step: (state, train set, batches of rows [B, N]) -> (state, metric sums).

    The state is donated.

    Args:
      train_step: from `make_train_step`.
      looped: make all B updates on the device in one call. Otherwise B must be 1, as suits
        CPUs, where a convolution's gradient inside a loop is 30 times slower.
    """

    def one_batch(state: VictimState, train_set: Images, batches: Array) -> tuple:
        (rows,) = batches
        return train_step(state, train_set, rows)

    def many_batches(state: VictimState, train_set: Images, batches: Array) -> tuple:
        state, metrics = jax.lax.scan(
            lambda state, rows: train_step(state, train_set, rows), state, batches
        )
        return state, jax.tree.map(lambda m: m.sum(axis=0), metrics)

    return jax.jit(many_batches if looped else one_batch, donate_argnames="state")


def make_evaluate(net: Net, info: data.Info) -> Callable[[Variables, Images], float]:
    """A function that gives the accuracy on a test set, through the oracle that clones ask."""

    @jax.jit
    def count(victim: Victim, images: Array, labels: Array) -> Array:
        return (victim(to_float(images)) == labels).sum()

    def evaluate(variables: Variables, test_set: Images, batch_size: int = 500) -> float:
        victim = make_victim(net, variables, mean=info.mean, std=info.std, hard_labels=True)
        total = len(test_set.labels)
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
      Stopped: SIGTERM or SIGINT came; the training is saved.
    """
    validate(config)
    if config.model not in models.CLASSIFIERS:
        names = ", ".join(models.CLASSIFIERS)
        raise UserError(f"config.model is {config.model!r}; it must be one of {names}")
    workdir, output = pathlib.Path(workdir), output_path(config)
    summary_path = workdir / "summary.json"
    started_with = plan.read_started_config(workdir)
    if started_with is not None:
        plan.refuse_other_config(started_with, config, workdir, extend=False)
        if summary_path.exists() and output.exists():
            print(f"{workdir} is finished, its weights are {output}. Nothing to do.")
            return json.loads(summary_path.read_text())
    refuse_to_overwrite(output, config)

    run = build(config)
    _make_folder(workdir, "--workdir")
    _make_folder(output.parent, "config.output")
    with (
        disk_errors(workdir),
        checkpoint.lock(workdir),
        checkpoint.Checkpoints(workdir / "checkpoints") as saved,
    ):
        restored = saved.restore(jax.eval_shape(run.init))
        state, progress = restored or (run.init(), {"history": []})
        history = progress["history"]
        print(describe(run, state), f"workdir {workdir}", sep="\n", flush=True)
        writers.write_json(workdir / "config.json", plan.provenance(config))
        state = train_epochs(run, state, history, saved, workdir)
        summary = summarise(run, history)
        refuse_to_overwrite(output, config)
        convert.save_state_dict(
            output,
            convert.to_state_dict(jax.device_get(state.variables)),
            weights_metadata(run, summary["test_accuracy"]),
        )
        writers.write_json(summary_path, summary)
    print(
        f"test accuracy {summary['test_accuracy']:.4f} after {config.epochs} epochs, "
        f"{summary['wall_seconds'] / 60:.1f} minutes: {output}",
        flush=True,
    )
    return summary


def build(config: VictimTrainingConfig) -> Run:
    """Loads the images and makes everything else.

    Raises:
      UserError: there is no such data, or not enough of it.
    """
    info = data.describe(config.dataset, config.data_dir)
    train_set = load(config, "train", config.train_images)
    test_set = load(config, "test", config.test_images)
    steps_per_epoch = len(train_set.labels) // config.batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"config.batch_size is {config.batch_size:,}; it must be at most the number of "
            f"training images, {len(train_set.labels):,}"
        )
    dtype = plan.compute_dtype(config.precision)
    net = models.make_classifier(
        config.model,
        width=config.width,
        num_classes=info.num_classes,
        channels=info.channels,
        dtype=None if dtype == jnp.float32 else dtype,
    )
    tx = make_optimizer(config, steps_per_epoch)
    return Run(
        config=config,
        info=info,
        train_set=train_set,
        test_set=test_set,
        net=net,
        dtype=dtype,
        steps_per_epoch=steps_per_epoch,
        init=jax.jit(lambda: init_state(config, net, tx)),
        train_step=make_train_step(config, net, tx, info),
    )


def train_epochs(
    run: Run,
    state: VictimState,
    history: list[dict[str, Any]],
    saved: checkpoint.Checkpoints,
    workdir: pathlib.Path,
) -> VictimState:
    """Trains the epochs that are left; logs, evaluates and saves on the way.

    Args:
      run: what is trained on what.
      state: after the epochs of `history`.
      history: a line of metrics for each epoch, which is added to.
      saved: where checkpoints go.
      workdir: where `metrics.jsonl` goes.
    """
    config, batch_size = run.config, run.config.batch_size
    num_images = len(run.train_set.labels)
    looped = jax.default_backend() != "cpu"
    train_call = make_train_call(run.train_step, looped=looped)
    draw = jax.jit(draw_order, static_argnums=(2, 3))
    evaluate = make_evaluate(run.net, run.info)

    # Written anew: epochs after the checkpoint are trained, and logged, once more.
    log = (workdir / "metrics.jsonl").open("w")
    log.writelines(json.dumps(line) + "\n" for line in history)
    bar = tqdm.tqdm(
        total=config.epochs * run.steps_per_epoch * batch_size,
        initial=int(state.step) * batch_size,
        unit="image",
        unit_scale=True,
        dynamic_ncols=True,
        disable=not sys.stderr.isatty(),
    )
    with log, contextlib.closing(bar), train.stop_requests() as stop:
        for epoch in range(len(history) + 1, config.epochs + 1):
            start = time.perf_counter()
            order = draw(state.key, epoch, num_images, batch_size)
            sums = {"loss": 0.0, "accuracy": 0.0}
            for batches in [order] if looped else order[:, None]:
                state, metrics = train_call(state, run.train_set, batches)
                sums = {name: sums[name] + float(metrics[name]) for name in sums}
                bar.update(batches.size)
            line = {"epoch": epoch} | {f"train/{k}": v / order.size for k, v in sums.items()}
            if not math.isfinite(line["train/loss"]):
                raise UserError(
                    f"epoch {epoch}: the loss is {line['train/loss']}. A smaller "
                    "config.learning_rate may help, in a new --workdir."
                )
            line["time/train_seconds"] = time.perf_counter() - start
            finished = epoch == config.epochs
            if finished or epoch % config.evaluate_every_epochs == 0:
                line["eval/accuracy"] = evaluate(state.variables, run.test_set)
            line["time/seconds"] = time.perf_counter() - start
            history.append(line)
            log.write(json.dumps(line) + "\n")
            log.flush()
            report(bar, line, config.epochs)
            if finished or stop or epoch % config.checkpoint_every_epochs == 0:
                saved.save(state, {"history": history})
            if stop and not finished:
                raise Stopped(stop[0], epoch)
    return state


def describe(run: Run, state: VictimState) -> str:
    """What the training is about to do."""
    config, done = run.config, int(state.step) // run.steps_per_epoch
    num_params = sum(x.size for x in jax.tree.leaves(state.variables.params))
    rows = {
        "victim": f"{config.model} of width {width_of(config)}, {num_params:,} parameters",
        "images": f"{len(run.train_set.labels):,} of {config.dataset}, "
        f"tested on {len(run.test_set.labels):,}",
        "epochs": f"{config.epochs} of {run.steps_per_epoch} batches of {config.batch_size}"
        + (f"; {done} are done" if done else ""),
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()}), {run.dtype.name}",
        "weights": str(output_path(config)),
    }
    return "\n".join(f"{name:<7} {value}" for name, value in rows.items())


def load(config: VictimTrainingConfig, split: str, num_images: int) -> Images:
    """The first `num_images` of a split (0: all of them) on the device.

    Raises:
      UserError: there are not so many, or no such data.
    """
    images, labels = data.load(config.dataset, split, config.data_dir)
    if num_images > len(images):
        raise UserError(
            f"config.{split}_images is {num_images:,}; it must be at most {len(images):,}, "
            f"which is what {config.dataset} has"
        )
    keep = slice(num_images or None)
    return Images(jnp.asarray(images[keep]), jnp.asarray(labels[keep], jnp.int32))


def output_path(config: VictimTrainingConfig) -> pathlib.Path:
    """The file that the weights go to; extraction configurations look for the default one."""
    return pathlib.Path(config.output or f"victims/{config.dataset}-{config.model}.safetensors")


def refuse_to_overwrite(output: pathlib.Path, config: VictimTrainingConfig) -> None:
    """Refuses to replace a file that another recipe made.

    Raises:
      UserError: there is such a file.
    """
    if not output.exists():
        return
    try:
        made_by = convert.load_metadata(output).get("recipe")
    except UserError:
        made_by = None
    if made_by != json.dumps(recipe(config)):
        raise UserError(
            f"config.output: {output} exists and is not of this training; move it away or "
            "name another file: --config.output=FILE.safetensors"
        )


def recipe(config: VictimTrainingConfig) -> dict[str, Any]:
    """The part of the configuration that decides about the weights."""
    return {
        key: getattr(config, key)
        for key, known in settings(type(config)).items()
        if not (known.resume or known.reports)
    }


def weights_metadata(run: Run, test_accuracy: float) -> dict[str, str]:
    """What the file of weights says about itself; everything but names is JSON."""
    config = run.config
    return {
        "model": config.model,
        "width": json.dumps(width_of(config)),
        "dataset": config.dataset,
        "mean": json.dumps(run.info.mean),
        "std": json.dumps(run.info.std),
        "test_accuracy": json.dumps(test_accuracy),
        "recipe": json.dumps(recipe(config)),
    }


def width_of(config: VictimTrainingConfig) -> int:
    """The configured width, or the model's usual one."""
    return config.width or models.CLASSIFIERS[config.model][1]


def summarise(run: Run, history: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of summary.json; the accuracies are those of the last epoch."""
    return {
        "config": dataclasses.asdict(run.config),
        "weights": str(output_path(run.config)),
        "epochs": run.config.epochs,
        "train_images": len(run.train_set.labels),
        "test_images": len(run.test_set.labels),
        "train_accuracy": history[-1]["train/accuracy"],
        "test_accuracy": history[-1]["eval/accuracy"],
        "wall_seconds": sum(line["time/seconds"] for line in history),
    }


def report(bar: tqdm.tqdm, line: dict[str, Any], epochs: int) -> None:
    """Says how an epoch went: beside the bar on a terminal, in a line of its own elsewhere."""
    parts = [f"epoch {line['epoch']} of {epochs}", f"loss {line['train/loss']:.4f}"]
    if "eval/accuracy" in line:
        parts.append(f"test accuracy {line['eval/accuracy']:.4f}")
    if bar.disable:
        print(*parts, f"{line['time/seconds']:.1f} s", sep=", ", flush=True)
    else:
        bar.set_postfix_str(", ".join(parts))


def _make_folder(folder: pathlib.Path, key: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}: cannot make {folder}: {error.strerror}") from error
