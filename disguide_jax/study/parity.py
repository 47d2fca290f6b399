"""Compares this project with numbers recorded from the authors' PyTorch code.

A directory holds state dicts (NAME.pt) and recordings (NAME.npz); every comparison that its files
allow is made, through the functions that train, in float64. Images are 32x32; other sizes are
read from the arrays.
"""

import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike

from disguide_jax import models
from disguide_jax.config import Config
from disguide_jax.core import answers, learn, losses, zeroth_order
from disguide_jax.core import images as core_images
from disguide_jax.core.exchange import Kit
from disguide_jax.core.types import Net, Networks, Optimizers, Task, Variables
from disguide_jax.errors import UserError
from disguide_jax.files import architectures, weights
from disguide_jax.files.datasets import IMAGE_SIZE
from disguide_jax.methods import dfme, disguide
from disguide_jax.options import GeneratorConfig

TOLERANCE = 1e-9
DIFFERENCES_TOLERANCE = 1e-8  # forward differences divide rounding by epsilon
# A bias in front of a batch norm has a gradient of exactly zero, and both sides hold rounding
# noise: these are compared on the scale of all arrays together.
BEFORE_NORM = ("conv_blocks1.0.bias", "conv_blocks2.0.bias", "conv_blocks2.3.bias")
LABELS = {"l1": "soft", "kl": "soft", "hl": "hard"}

Recording = dict[str, np.ndarray]


class Row(NamedTuple):
    """One compared quantity."""

    quantity: str
    error: float  # largest, relative to the largest recorded value
    tolerance: float = TOLERANCE


def compare(directory: pathlib.Path) -> Iterator[Row]:
    """Makes every comparison that the files in `directory` allow, in float64."""
    for name in ("resnet18", "resnet34", "lenet5", "lenet5_half"):
        if (recording := _load(directory, name)) is not None:
            yield from compare_classifier(name, recording, *_classifier(directory, name))
    if (recording := _load(directory, "generator")) is not None:
        yield from compare_generator(recording, *_generator(directory))
    if (recording := _load(directory, "losses")) is not None:
        probs = jnp.asarray(recording["probs"]).swapaxes(0, 1)
        yield _row(
            "disagreement loss", -losses.disagreement(probs).mean(), recording, "disagreement"
        )
        yield _row("diversity loss", losses.diversity(probs), recording, "diversity")
    if (recording := _load(directory, "generator_step")) is not None:
        yield from compare_generator_updates(directory, recording)
    for loss in LABELS:
        if (recording := _load(directory, f"clone_step_{loss}")) is not None:
            yield from compare_clone_updates(directory, loss, recording)
    for loss in ("l1", "kl"):
        if (recording := _load(directory, f"dfme_gradient_{loss}")) is not None:
            yield from compare_forward_differences(directory, loss, recording)


def compare_classifier(
    name: str, recording: Recording, net: Net, variables: Variables
) -> Iterator[Row]:
    """Logits in eval and train mode, and the running statistics after the latter."""
    x = jnp.asarray(recording["x"])
    evaluated = "logits_eval" if "logits_eval" in recording else "logits"
    logits, _ = net.apply(variables, x, train=False)
    yield _row(f"{name} eval", logits, recording, evaluated)
    if "logits_train" in recording:
        logits, batch_stats = net.apply(variables, x, train=True)
        yield _row(f"{name} train", logits, recording, "logits_train")
        after = weights.to_state_dict(Variables({}, batch_stats))
        yield from _rows(f"{name} running statistics", after, recording, "after_train_forward/")


def compare_generator(recording: Recording, net: Net, variables: Variables) -> Iterator[Row]:
    """Images in both modes, with every gray channel, and the running statistics."""
    z = jnp.asarray(recording["z"])
    make = functools.partial(core_images.generate, net, variables, z, gray_every=8)
    pre_tanh, _ = net.apply(variables, z, train=False)
    yield _row("generator before tanh", pre_tanh, recording, "pre_tanh_eval_nogray")
    for key in recording:
        if key.startswith(("image_eval_gray", "image_train_gray")):
            images, batch_stats = make(jnp.int32(key[-1]), train="train" in key)
            yield _row(f"generator {key}", images, recording, key)
            if "train" in key:
                after = weights.to_state_dict(Variables({}, batch_stats))
                prefix = "after_train_forward/"
                yield from _rows("generator running statistics", after, recording, prefix)


def compare_generator_updates(directory: pathlib.Path, recording: Recording) -> Iterator[Row]:
    """Loss, gradient and weights of consecutive generator updates with Adam."""
    generator = GeneratorConfig(diversity_weight=float(recording["lambda_div"]), gray_every=8)
    kit, variables, clones = _kit(directory, _num_clones(directory), generator=generator)
    tx = _recorded(learn.adam(float(recording["lr"]), weight_decay=0.0))
    kit = kit._replace(tx=kit.tx._replace(generator=tx))
    learner = learn.start(variables, tx)
    for step in _steps(recording, "z"):
        drawn = jnp.asarray(recording[f"z{step}"]), jnp.asarray(recording[f"gray_channel{step}"])
        learner, metrics = disguide.update_generator(kit, learner, clones, *drawn)
        what = f"generator update {step}"
        yield _row(f"{what} loss", metrics["gen/loss"], recording, f"loss{step}")
        grads = weights.to_state_dict(Variables(learner.opt_state[0], {}))
        yield from _rows(f"{what} gradient", grads, recording, f"grad{step}/")
        after = weights.to_state_dict(learner.variables)
        yield from _rows(f"{what} weights and statistics", after, recording, f"after{step}/")


def compare_clone_updates(
    directory: pathlib.Path, loss: str, recording: Recording
) -> Iterator[Row]:
    """Loss, predictions, gradient and weights of consecutive updates of all clones."""
    num_clones = recording["preds0"].shape[1]
    kit, _, clones = _kit(directory, num_clones)
    sgd = learn.sgd(
        float(recording["lr"]),
        momentum=float(recording["momentum"]),
        weight_decay=float(recording["weight_decay"]),
    )
    tx, net = _recorded(sgd), kit.networks.clones
    learner = learn.start(clones, tx)
    kind = {"hl": answers.hard(), "kl": answers.soft(answers.kl(0))}.get(loss, kit.answers)
    for step in _steps(recording, "x"):
        images = jnp.asarray(recording[f"x{step}"])
        victim_logits = jnp.asarray(recording[f"victim_logits{step}"])
        said = victim_logits.argmax(-1) if loss == "hl" else jax.nn.softmax(victim_logits)
        logits, _ = net.apply(learner.variables, images, train=True)
        learner, metrics = learn.teach(learner, net, tx, kind.loss, images, said)
        what = f"clone update {loss} {step}"
        summed = metrics["clones/loss"] * num_clones
        yield _row(f"{what} loss", summed, recording, f"loss_sum{step}")
        preds = jax.nn.softmax(logits).swapaxes(0, 1)
        yield _row(f"{what} predictions", preds, recording, f"preds{step}")
        for i in range(num_clones):
            grads, after = (
                weights.to_state_dict(jax.tree.map(lambda x, i=i: x[i], tree))
                for tree in (Variables(learner.opt_state[0], {}), learner.variables)
            )
            yield from _rows(
                f"{what} gradient of clone {i}", grads, recording, f"grad{step}/clone{i}/"
            )
            yield from _rows(
                f"{what} weights and statistics of clone {i}",
                after,
                recording,
                f"after{step}/clone{i}/",
            )


def compare_forward_differences(
    directory: pathlib.Path, loss: str, recording: Recording
) -> Iterator[Row]:
    """DFME's gradient before the tanh, its loss, and the queries that both flops."""
    kit, _, clones = _kit(directory, 1)
    victim_net, victim_variables = _classifier(directory, "resnet34")
    loss_fn = answers.SOFT_LOSSES[loss](1e-30)
    directions = jnp.asarray(recording["directions"]).swapaxes(0, 1)
    epsilon = float(recording["epsilon"])
    passes = zeroth_order.steps_along(
        jnp.asarray(recording["pre_tanh"]), directions, epsilon=epsilon
    )
    flat = passes.reshape(-1, *passes.shape[2:])
    _, estimate = zeroth_order.estimate(
        learn.start(clones, optax.identity()),
        kit.networks.clones,
        passes,
        directions,
        jax.nn.softmax(victim_net.apply(victim_variables, flat, train=False)[0]),
        loss_fn=lambda logits, said: -loss_fn(logits, said),
        epsilon=epsilon,
        clones_train=False,
    )
    what, gradient = f"forward differences {loss}", dfme.scale(estimate, soft_loss=loss)
    if "loss" in recording:  # not in a part of the batch
        yield _row(f"{what} loss", estimate.losses.mean(), recording, "loss")
    error = _relative(gradient, recording["gradient"])
    yield Row(f"{what} gradient", error, DIFFERENCES_TOLERANCE)
    yield _row(f"{what} queries", len(flat), recording, "queries")


def precisions(directory: pathlib.Path) -> Iterator[tuple[str, float, float]]:
    """How far float32 and bfloat16 are from the recorded float64, network by network."""
    for name in ("resnet18", "resnet34", "lenet5", "lenet5_half", "generator"):
        recording = _load(directory, name)
        if recording is None:
            continue
        build = _generator if name == "generator" else functools.partial(_classifier, name=name)
        errors = []
        for dtype in (jnp.float32, jnp.bfloat16):
            net, variables = build(directory, dtype=dtype)
            x = recording["z" if name == "generator" else "x"].astype(np.float32)
            out, _ = net.apply(variables, jnp.asarray(x), train=False)
            keys = ("logits_eval", "logits", "pre_tanh_eval_nogray")
            key = next(key for key in keys if key in recording)
            errors.append(_relative(out, recording[key]))
        single, half = errors
        yield name, single, half


def _load(directory: pathlib.Path, name: str) -> Recording | None:
    path = directory / f"{name}.npz"
    if not path.exists():
        return None
    try:
        with np.load(path) as file:
            return dict(file)
    except Exception as error:  # a damaged archive fails in many ways
        raise UserError(f"{path}: cannot be read as a recording: {error}") from error


def _weights(path: pathlib.Path) -> Variables:
    """The recorded weights, in float64 with x64 and in float32 without."""
    variables = weights.to_variables(weights.load_state_dict(path))
    return jax.tree.map(lambda x: jnp.asarray(x, float), variables)


def _classifier(
    directory: pathlib.Path, name: str, dtype: DTypeLike | None = None
) -> tuple[Net, Variables]:
    path = directory / f"{name}.pt"
    arch = architectures.recognise(weights.load_state_dict(path), str(path))
    arch = arch._replace(size=IMAGE_SIZE)
    return models.make_classifier(**arch._asdict(), dtype=dtype), _weights(path)


def _generator(directory: pathlib.Path, dtype: DTypeLike | None = None) -> tuple[Net, Variables]:
    variables = _weights(directory / "generator.pt")
    latent_dim = variables.params["l1.0"]["kernel"].shape[0]
    *_, width, channels = variables.params["conv_blocks2.3"]["kernel"].shape
    net = models.make_generator(
        width=width, latent_dim=latent_dim, size=IMAGE_SIZE, channels=channels, dtype=dtype
    )
    return net, variables


def _num_clones(directory: pathlib.Path) -> int:
    return len(list(directory.glob("clone[0-9]*.pt")))


def _kit(
    directory: pathlib.Path, num_clones: int, **changes: Any
) -> tuple[Kit, Variables, Variables]:
    """What updates are made with, and the recorded variables of generator and clones."""
    generator, generator_variables = _generator(directory)
    clones = [_classifier(directory, f"clone{i}") for i in range(num_clones)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(c[1] for c in clones))
    net = models.stack(clones[0][0], num_clones)
    kit = Kit(
        config=Config(name="parity", dataset="", labels="soft", query_budget=1, **changes),
        task=Task(size=IMAGE_SIZE, channels=3, num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3),
        networks=Networks(generator, net, net),
        tx=Optimizers(optax.identity(), optax.identity()),
        answers=answers.soft(answers.l1(1e-30)),
        query_dtype=jnp.dtype(jnp.float32),
    )
    return kit, generator_variables, stacked


def _recorded(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same, with the gradient it was last given as the first part of its state."""
    record = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, *_: (grads, grads)
    )
    return optax.chain(record, tx)


def _steps(recording: Recording, name: str) -> Iterable[int]:
    return range(sum(key.startswith(name) and key[len(name) :].isdigit() for key in recording))


def _relative(value: ArrayLike, recorded: np.ndarray) -> float:
    found = np.asarray(value, np.float64)
    if found.shape != recorded.shape:
        return float("inf")
    error, scale = np.abs(found - recorded).max(), np.abs(recorded).max()
    return float(error / scale) if scale > 0 else float(error)


def _row(quantity: str, found: ArrayLike, recording: Recording, key: str) -> Row:
    return Row(quantity, _relative(found, recording[key]))


def _rows(
    quantity: str, found: weights.StateDict, recording: Recording, prefix: str
) -> Iterator[Row]:
    """The worst of the arrays recorded under a prefix, if any are."""
    recorded = {
        key.removeprefix(prefix): value
        for key, value in recording.items()
        if key.startswith(prefix) and not key.endswith("num_batches_tracked")
    }
    if not recorded:
        return
    scale = max(np.abs(value).max() for value in recorded.values())

    def error(name: str) -> float:
        if name not in found:
            return float("inf")
        if name in BEFORE_NORM:
            return float(np.abs(found[name] - recorded[name]).max() / scale)
        return _relative(found[name], recorded[name])

    yield Row(f"{quantity} ({len(recorded)} arrays)", max(map(error, recorded)))


def check(directory: pathlib.Path, say: Callable[[str], None] = print) -> bool:
    """Prints both tables; returns whether every quantity is within its tolerance."""
    say(f"{'quantity':<64} {'largest relative error':>22} {'tolerance':>10}")
    num_rows, num_failed = 0, 0
    with jax.enable_x64(True):
        for row in compare(directory):
            failed = not row.error <= row.tolerance  # NaN fails, too
            num_rows, num_failed = num_rows + 1, num_failed + failed
            mark = "  EXCEEDED" if failed else ""
            say(f"{row.quantity:<64} {row.error:>22.1e} {row.tolerance:>10.0e}{mark}")
    if num_rows == 0:
        raise UserError(f"{directory} holds no recording (NAME.npz) that can be compared")
    say(f"\n{'eval mode, against float64':<64} {'float32':>22} {'bfloat16':>10}")
    for name, single, half in precisions(directory):
        say(f"{name:<64} {single:>22.1e} {half:>10.1e}")
    say(f"\n{num_rows - num_failed} of {num_rows} quantities agree")
    return num_failed == 0
