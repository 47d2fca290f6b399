"""What test_machines.py runs on four devices: names the methods of which devices meet in loops."""

import re

import jax
import on_devices
import tiny

from disguide_jax.core import mesh
from disguide_jax.methods import METHODS
from disguide_jax.run import program as parts

LOOPS = r" (?:while|conditional)\("
MEETING = r" (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
CALLED = r"(?:body|condition|calls|to_apply|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)"


def called(line):
    """The computations that an instruction calls."""
    return {n.strip(" %{}") for names in re.findall(CALLED, line) for n in names.split(",")}


def meet_in_loops(text):
    """Whether a compiled program has collectives in what its loops and branches call."""
    blocks = re.findall(r"^(?:ENTRY )?%?([\w.-]+) \([^\n]*\{\n(.*?)^\}", text, re.DOTALL | re.M)
    lines = {name: body.splitlines() for name, body in blocks}
    seen: set[str] = set()
    left = {n for body in lines.values() for x in body if re.search(LOOPS, x) for n in called(x)}
    while left:
        seen |= left
        left = {n for name in left for x in lines.get(name, ()) for n in called(x)} - seen
    return any(re.search(MEETING, line) for name in seen for line in lines.get(name, ()))


def programs(method):
    """The compiled rounds of all stages, as text."""
    config = on_devices.config_of(method)
    answer = tiny.smooth_brightness if config.labels == "soft" else tiny.brightness
    stages, kits = parts.stages_of(config), tiny.make_kits(config)
    with mesh.use(jax.devices()):
        state = jax.jit(lambda: on_devices.start(kits[stages[-1].name]))()
        for stage in {stage.name: stage for stage in stages}.values():
            play = jax.jit(parts.make_play(kits[stage.name], stage))
            yield play.lower(state, jax.tree_util.Partial(answer)).compile().as_text()


if __name__ == "__main__":
    for name, method in METHODS.items():
        if not method.learns_from_file and any(map(meet_in_loops, programs(name))):
            print(name)
