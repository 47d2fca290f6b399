"""The victims that come with the package are as good as is said of them."""

import re

import pytest
from conftest import ROOT

from disguide_jax.errors import UserError
from disguide_jax.files import datasets, weights
from disguide_jax.options import VictimConfig
from disguide_jax.run import first_look

ASSETS = ROOT / "disguide_jax/assets"


@pytest.mark.parametrize("name", ["digits", "colour_digits", "fashion_mnist"])
def test_an_embedded_victim_has_the_accuracy_that_is_said_of_it(name):
    try:
        datasets.load(name, "test")
    except UserError:
        pytest.skip(f"{name} is not on this machine")
    file = f"{name}-lenet5.safetensors"
    said = first_look.report(VictimConfig(f"embedded:{file}"), name, "", "")
    recorded = float(weights.load_metadata(ASSETS / file)["test_accuracy"])
    (accuracy,) = re.findall(r"0\.\d{4}", said)[:1]
    assert abs(float(accuracy) - recorded) <= 2e-4, "another processor rounds differently"
    notes = (ASSETS / "README.md").read_text().partition(f"`{file}`")[2]
    (shown,) = re.findall(r"([\d.]+) % accuracy", notes)[:1]
    assert abs(float(shown) / 100 - recorded) < 6e-4
