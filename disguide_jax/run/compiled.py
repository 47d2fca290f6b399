"""What a run compiles: once in a process, however many seeds it is played with.

The victim is part of a round, which is fastest. Where runs against many victims follow each
other, `Shared` compiles around it, so that a victim that differs compiles nothing else anew.
"""

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disguide_jax.config import to_dict
from disguide_jax.core import losses, machines, mesh, pixels
from disguide_jax.core.exchange import Trade, make_call
from disguide_jax.core.types import Array, Key, Metrics, Net, TrainState, Variables
from disguide_jax.run import evaluate, guard, pictures
from disguide_jax.run import program as programs
from disguide_jax.run.program import Program
from disguide_jax.victims.defences import Traced

Sample = Callable[[TrainState], tuple[np.ndarray, dict[str, float]]]


class Compiled(NamedTuple):
    """The functions of a run; nothing is compiled before it is called."""

    start: Callable[[Key], TrainState]  # a fresh state on the device
    rounds: dict[str, Callable[..., Any]]  # of each stage, by its name; the state is donated
    around_victim: bool  # rounds take (state, what trades with it), not (state, victim, number)
    restart: Callable[..., TrainState]  # see `program.restart`
    sample: Sample  # what the generator makes
    evaluate: Callable[[Variables, evaluate.TestSet], evaluate.Scores]


FunctionsOf = Callable[[Program], Compiled]


def compiled(program: Program, *, around_victim: bool = False) -> Compiled:
    """The functions of a run.

    Args:
      program: of the run.
      around_victim: leave the victim out of the rounds, though its weights are at hand. Those
        of an endpoint are compiled so anyway.
    """
    kit = program.kit
    victim = program.victim if isinstance(program.victim, Traced) else None
    around_victim = around_victim or victim is None
    looped = program.config.rounds_per_call > 1
    return Compiled(
        start=jax.jit(functools.partial(programs.init_state, kit)),
        rounds={
            stage.name: program.drive(stage)
            if around_victim
            else make_call(program.call(stage), looped=looped)
            for stage in program.stages
        },
        around_victim=around_victim,
        restart=jax.jit(functools.partial(programs.restart, kit), static_argnames="clones_too"),
        sample=make_sample(program),
        evaluate=evaluate.make_evaluate(program.networks.exact_clones, victim),
    )


class Shared:
    """`compiled`, once for all runs that differ in nothing but seeds, victims and transfer sets.

    What is trained depends on the rest of the configuration and on the task, which has what is
    known of the images.
    """

    def __init__(self) -> None:
        self._made = dict[str, Compiled]()

    def __call__(self, program: Program) -> Compiled:
        """The functions of a run, see `compiled`."""
        said = to_dict(program.config)
        victim = program.config.victim
        said["victim"] = [bool(victim.endpoint), victim.input_space]  # where clones are tested
        said["offline"]["queries"] = ""  # of whose content the replay's size alone counts
        said |= {"name": "", "seed": 0}
        key = json.dumps([said, program.kit.task], sort_keys=True)
        if key not in self._made:
            self._made[key] = compiled(program, around_victim=True)
        return self._made[key]


def trade_with(victim: Traced) -> Trade:
    """A victim whose weights are at hand, for rounds that are compiled around it."""
    ask = jax.jit(lambda victim, images: victim(pixels.decode(images)))
    return lambda images: (images, ask(victim, images))


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
