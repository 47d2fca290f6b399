"""Networks of public zoos, under the zoos' names, compute what PyTorch computes.

Each file in `data/networks` is one network, written in PyTorch after its zoo, narrow, in float64:
names and shapes of its state dict, and its logits for two images in eval and in train mode, there
without dropout. Weights and images are drawn as `drawn` draws them, by a generator that NumPy
never changes.
"""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from disguide_jax.files import weights
from disguide_jax.options import VictimConfig
from disguide_jax.victims import network

RECORDED = {path.stem: path for path in sorted((ROOT / "tests/data/networks").glob("*.json"))}


@functools.cache
def recording(name: str) -> dict:
    return json.loads(RECORDED[name].read_text())


def drawn(shapes: dict[str, list[int]], gain: float) -> weights.StateDict:
    """Weights that keep the size of activations but for the gain, and odd statistics."""
    rng = np.random.RandomState(0)
    state_dict = {}
    for name, shape in shapes.items():
        x = rng.random_sample(shape)
        if len(shape) > 1:
            x = gain * (2 * x - 1) * math.sqrt(6 / math.prod(shape[1:]))
        elif name.endswith("running_var") or name.endswith("weight"):
            x = 0.5 + x
        else:
            x = 0.6 * (x - 0.5)
        state_dict[name] = x.astype(np.float32)
    return state_dict


@functools.cache
def loaded(name: str, folder):
    """The network as a victim's, from a file with the zoo's names."""
    recorded = recording(name)
    path = folder / f"{name}.safetensors"
    state_dict = drawn(recorded["tensors"], recorded["gain"])
    weights.save_state_dict(path, {f"module.{name}": x for name, x in state_dict.items()})
    channels = next(shape for shape in recorded["tensors"].values() if len(shape) == 4)[1]
    pooled = recorded["model"] if recorded["model"].endswith("_pool") else ""
    config = VictimConfig(weights=str(path), model=pooled)
    loaded = network.load_network(config, num_classes=3, size=32, channels=channels)
    images = np.random.RandomState(1).random_sample((2, 32, 32, channels)).astype(np.float32)
    return *loaded, jnp.asarray(2 * images - 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("networks")


SLOW = [name for name in RECORDED if name.startswith("densenet121, ")]  # to compile


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in RECORDED]
)
def test_logits_are_pytorchs(name, folder):
    recorded = recording(name)
    net, variables, found, images = loaded(name, folder)
    assert (found.model, found.width) == (recorded["model"], recorded["width"])
    logits, _ = jax.jit(functools.partial(net.apply, train=False))(variables, images)
    np.testing.assert_allclose(logits, recorded["eval"], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED)
def test_logits_of_a_clone_in_training_are_pytorchs(name, folder):
    """In float64: two images have ill-conditioned statistics."""
    with jax.enable_x64(True):
        net, variables, _, images = loaded(name, folder)
        variables, images = jax.tree.map(lambda x: jnp.asarray(x, float), (variables, images))
        logits, _ = jax.jit(functools.partial(net.apply, train=True))(variables, images)
        np.testing.assert_allclose(logits, recording(name)["train"], rtol=0, atol=1e-5)
