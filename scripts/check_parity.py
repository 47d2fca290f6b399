"""Compares this project with numbers recorded from the authors' PyTorch code.

usage: python scripts/check_parity.py DIR

DIR holds state dicts (NAME.pt) and recordings (NAME.npz); every comparison that its files
allow is made, through the functions that train, in float64. Sizes are read from the arrays.
Exits with 1 if a quantity is off by more than its tolerance.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from disguide_jax import convert, losses, models, optim, replay, updates, zeroth_order
from disguide_jax.config import ClonesConfig, Config, GeneratorConfig
from disguide_jax.errors import UserError
from disguide_jax.methods import dfme, disguide
from disguide_jax.state import Array, Net, Networks, Optimizers, TrainState, Variables

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
        after = convert.to_state_dict(Variables({}, batch_stats))
        yield from _rows(f"{name} running statistics", after, recording, "after_train_forward/")


def compare_generator(recording: Recording, net: Net, variables: Variables) -> Iterator[Row]:
    """Images in both modes, with every gray channel, and the running statistics."""
    z = jnp.asarray(recording["z"])
    make = functools.partial(updates.generate, net, variables, z, gray_every=8)
    pre_tanh, _ = net.apply(variables, z, train=False)
    yield _row("generator before tanh", pre_tanh, recording, "pre_tanh_eval_nogray")
    for key in recording:
        if key.startswith(("image_eval_gray", "image_train_gray")):
            images, batch_stats = make(jnp.int32(key[-1]), train="train" in key)
            yield _row(f"generator {key}", images, recording, key)
            if "train" in key:
                after = convert.to_state_dict(Variables({}, batch_stats))
                prefix = "after_train_forward/"
                yield from _rows("generator running statistics", after, recording, prefix)


def compare_generator_updates(directory: pathlib.Path, recording: Recording) -> Iterator[Row]:
    """Loss, gradient and weights of consecutive generator updates with Adam."""
    networks, state, tx = _train_state(directory, num_clones=_num_clones(directory))
    tx = tx._replace(generator=_recorded(optim.adam(float(recording["lr"]), 0.0)))
    state = state.replace(generator_opt=tx.generator.init(state.generator.params))
    config = _config(
        generator=GeneratorConfig(diversity_weight=float(recording["lambda_div"]), gray_every=8)
    )
    for step in _steps(recording, "z"):
        z, gray_channel = recording[f"z{step}"], recording[f"gray_channel{step}"]
        state, metrics = disguide.update_generator(
            state, networks, tx, jnp.asarray(z), jnp.asarray(gray_channel), config=config
        )
        what = f"generator update {step}"
        yield _row(f"{what} loss", metrics["gen/loss"], recording, f"loss{step}")
        grads = convert.to_state_dict(Variables(state.generator_opt[0], {}))
        yield from _rows(f"{what} gradient", grads, recording, f"grad{step}/")
        after = convert.to_state_dict(state.generator)
        yield from _rows(f"{what} weights and statistics", after, recording, f"after{step}/")


def compare_clone_updates(
    directory: pathlib.Path, loss: str, recording: Recording
) -> Iterator[Row]:
    """Loss, predictions, gradient and weights of consecutive updates of all clones."""
    num_clones = recording["preds0"].shape[1]
    networks, state, tx = _train_state(directory, num_clones=num_clones)
    sgd = optim.sgd(
        float(recording["lr"]),
        momentum=float(recording["momentum"]),
        weight_decay=float(recording["weight_decay"]),
    )
    tx = tx._replace(clones=_recorded(sgd))
    state = state.replace(clones_opt=tx.clones.init(state.clones.params))
    soft_loss = "kl" if loss == "kl" else "l1"
    loss_fn = updates.make_clone_loss(ClonesConfig(soft_loss=soft_loss), labels=LABELS[loss])
    for step in _steps(recording, "x"):
        images = jnp.asarray(recording[f"x{step}"])
        victim_logits = jnp.asarray(recording[f"victim_logits{step}"])
        hard = LABELS[loss] == "hard"
        answers = victim_logits.argmax(-1) if hard else jax.nn.softmax(victim_logits)
        logits, _ = networks.clones.apply(state.clones, images, train=True)
        state, metrics = updates.update_clones(
            state, networks.clones, tx.clones, loss_fn, images, answers
        )
        what = f"clone update {loss} {step}"
        summed = metrics["clones/loss"] * num_clones
        yield _row(f"{what} loss", summed, recording, f"loss_sum{step}")
        preds = jax.nn.softmax(logits).swapaxes(0, 1)
        yield _row(f"{what} predictions", preds, recording, f"preds{step}")
        for i in range(num_clones):
            grads, after = (
                convert.to_state_dict(jax.tree.map(lambda x, i=i: x[i], tree))
                for tree in (Variables(state.clones_opt[0], {}), state.clones)
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
    """DFME's gradient before the tanh, its loss, and the queries that both cost."""
    net, clones = _classifier(directory, "clone0")
    victim_net, victim_variables = _classifier(directory, "resnet34")
    _, state, _ = _train_state(directory, num_clones=1)
    clone_loss = updates.make_clone_loss(ClonesConfig(soft_loss=loss), labels="soft")
    state, estimate = zeroth_order.estimate_gradient(
        state.replace(clones=jax.tree.map(lambda x: x[None], clones)),
        models.stack(net, 1),
        lambda images: jax.nn.softmax(victim_net.apply(victim_variables, images, train=False)[0]),
        jnp.asarray(recording["pre_tanh"]),
        jnp.asarray(recording["directions"]).swapaxes(0, 1),
        loss_fn=lambda logits, answers: -clone_loss(logits, answers),
        epsilon=float(recording["epsilon"]),
        clones_train=False,
    )
    what, gradient = f"forward differences {loss}", dfme.scale(estimate, soft_loss=loss)
    if "loss" in recording:  # not in a part of the batch
        yield _row(f"{what} loss", estimate.losses.mean(), recording, "loss")
    error = _relative(gradient, recording["gradient"])
    yield Row(f"{what} gradient", error, DIFFERENCES_TOLERANCE)
    yield _row(f"{what} queries", state.queries, recording, "queries")


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
        yield name, *errors


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
    """In float64 with x64, in float32 without."""
    variables = convert.to_variables(convert.load_state_dict(path))
    return jax.tree.map(lambda x: jnp.asarray(x, float), variables)


def _classifier(directory: pathlib.Path, name: str, dtype: Any = None) -> tuple[Net, Variables]:
    path = directory / f"{name}.pt"
    arch = convert.recognise(convert.load_state_dict(path), str(path))
    return models.make_classifier(**arch._asdict(), dtype=dtype), _weights(path)


def _generator(directory: pathlib.Path, dtype: Any = None) -> tuple[Net, Variables]:
    variables = _weights(directory / "generator.pt")
    latent_dim = variables.params["l1.0"]["kernel"].shape[0]
    *_, width, channels = variables.params["conv_blocks2.3"]["kernel"].shape
    sizes = {"width": width, "latent_dim": latent_dim, "channels": channels}
    return models.make_generator(**sizes, dtype=dtype), variables


def _num_clones(directory: pathlib.Path) -> int:
    return len(list(directory.glob("clone[0-9]*.pt")))


def _train_state(
    directory: pathlib.Path, *, num_clones: int
) -> tuple[Networks, TrainState, Optimizers]:
    generator, generator_variables = _generator(directory)
    clones = [_classifier(directory, f"clone{i}") for i in range(num_clones)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(c[1] for c in clones))
    networks = Networks(generator, models.stack(clones[0][0], num_clones))
    nothing = jax.ShapeDtypeStruct((1, 1, 1, 1), jnp.float32)
    tx = Optimizers(optax.identity(), optax.identity())
    state = TrainState(
        round=jnp.int32(0),
        queries=jnp.int32(0),
        answered=jnp.zeros((1,), jnp.int32),
        key=jax.random.key(0),
        generator=generator_variables,
        clones=stacked,
        generator_opt=(),
        clones_opt=(),
        replay=replay.init(1, nothing, nothing),
    )
    return networks, state, tx


def _config(**changes: Any) -> Config:
    return Config(name="parity", dataset="", labels="soft", query_budget=1, **changes)


def _recorded(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same, with the gradient it was last given as the first part of its state."""
    record = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, *_: (grads, grads)
    )
    return optax.chain(record, tx)


def _steps(recording: Recording, name: str) -> Iterable[int]:
    return range(sum(key.startswith(name) and key[len(name) :].isdigit() for key in recording))


def _relative(found: Array, recorded: np.ndarray) -> float:
    found = np.asarray(found, np.float64)
    if found.shape != recorded.shape:
        return float("inf")
    error, scale = np.abs(found - recorded).max(), np.abs(recorded).max()
    return float(error / scale) if scale > 0 else float(error)


def _row(quantity: str, found: Array, recording: Recording, key: str) -> Row:
    return Row(quantity, _relative(found, recording[key]))


def _rows(
    quantity: str, found: convert.StateDict, recording: Recording, prefix: str
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


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path, metavar="DIR")
    directory = parser.parse_args().directory
    try:
        if not directory.is_dir():
            raise UserError(f"{directory} is not a directory")
        return 0 if check(directory) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
