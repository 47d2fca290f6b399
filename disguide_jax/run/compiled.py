"""What a run compiles: once in a process, however many seeds it is played with."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disguide_jax.core import losses, machines, mesh, pixels
from disguide_jax.core.exchange import make_call
from disguide_jax.core.types import Array, Key, Metrics, Net, TrainState, Variables
from disguide_jax.run import evaluate, guard, pictures
from disguide_jax.run import program as programs
from disguide_jax.run.program import Program
from disguide_jax.victims.defences import Traced

Sample = Callable[[TrainState], tuple[np.ndarray, dict[str, float]]]


class Compiled(NamedTuple):
    """The functions of a run; nothing is compiled before it is called."""

    start: Callable[[Key], TrainState]  # a fresh state on the device
    rounds: dict[str, Callable[..., Any]]  # of each stage, by its name
    restart: Callable[..., TrainState]  # see `program.restart`
    sample: Sample  # what the generator makes
    evaluate: Callable[[Variables, evaluate.TestSet], evaluate.Scores]


def compiled(program: Program) -> Compiled:
    """The functions of a run.

    A round is called with a state, which is donated, the victim and the number of rounds; where
    the victim is an endpoint, with a state and what trades with it.
    """
    kit = program.kit
    victim = program.victim if isinstance(program.victim, Traced) else None
    looped = program.config.rounds_per_call > 1
    return Compiled(
        start=jax.jit(functools.partial(programs.init_state, kit)),
        rounds={
            stage.name: program.drive(stage)
            if victim is None
            else make_call(program.call(stage), looped=looped)
            for stage in program.stages
        },
        restart=jax.jit(functools.partial(programs.restart, kit), static_argnames="clones_too"),
        sample=make_sample(program),
        evaluate=evaluate.make_evaluate(program.networks.exact_clones, victim),
    )


def make_sample(program: Program) -> Sample:
    """A function from the state to uint8 images of always the same latent vectors.

    Beside them it gives what the guard must see of any method: how saturated they are and, of
    more clones than one, how far these disagree on them.
    """
    several, num = program.config.num_clones > 1, pictures.num_images(program.kit.task.size)

    @jax.jit
    def sample(state: TrainState) -> tuple[Array, Metrics]:
        images = programs.sample_images(program.kit, state, num)
        seen = {"gen/saturation": (jnp.abs(images) > guard.SATURATED).mean()}
        if several:
            clones, net = program.method.result(state), program.networks.exact_clones
            seen["gen/disagreement"] = mean_disagreement(net, clones, images)
        return mesh.whole((pixels.encode(images, jnp.dtype(jnp.uint8)), seen))

    def on_host(state: TrainState) -> tuple[np.ndarray, dict[str, float]]:
        images, seen = jax.device_get(machines.done(sample(state)))
        return images, {name: float(value) for name, value in seen.items()}

    return on_host


def mean_disagreement(net: Net, clones: Variables, images: Array) -> Array:
    """The clones' mean disagreement on images [N, H, W, channels], in eval mode, []."""
    logits, _ = net.apply(clones, images, train=False)
    return losses.disagreement(jax.nn.softmax(logits)).mean()
