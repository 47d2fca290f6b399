"""The numbers of the authors' code."""

import shutil

import numpy as np
import pytest
from conftest import ROOT

from disguide_jax.errors import UserError
from disguide_jax.study.parity import check

PART = ROOT / "tests/data/parity"


@pytest.mark.slow
def test_updates_losses_and_networks_agree_with_the_kept_recordings():
    lines = []
    assert check(PART, lines.append)
    text = "\n".join(lines)
    for quantity in (
        "lenet5_half eval",
        "diversity loss",
        "generator update 1",
        "clone update l1 0",
        "forward differences l1 gradient",
    ):
        assert quantity in text


def test_losses_and_a_network_agree_with_the_kept_recordings(tmp_path):
    for name in ("losses.npz", "lenet5_half.npz", "lenet5_half.pt"):
        shutil.copy(PART / name, tmp_path)
    lines = []
    assert check(tmp_path, lines.append)
    text = "\n".join(lines)
    for quantity in ("lenet5_half eval", "disagreement loss", "diversity loss"):
        assert quantity in text


@pytest.mark.slow
def test_everything_recorded_agrees(shared):
    lines = []
    assert check(shared / "golden", lines.append)
    quantities = sum("1e-09" in line or "1e-08" in line for line in lines)
    assert lines[-1].strip() == f"{quantities} of {quantities} quantities agree"
    assert quantities > 40


@pytest.mark.parametrize("key", ["disagreement", "diversity"])
def test_a_number_that_is_off_by_more_than_its_tolerance_fails(tmp_path, key):
    shutil.copy(PART / "losses.npz", tmp_path)
    with np.load(tmp_path / "losses.npz") as file:
        recording = dict(file)
    recording[key] = recording[key] * (1 + 1e-8)
    np.savez(tmp_path / "losses.npz", **recording)
    lines = []
    assert not check(tmp_path, lines.append)
    assert sum("EXCEEDED" in line for line in lines) == 1


def test_a_directory_without_recordings_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no recording"):
        check(tmp_path, lambda line: None)
