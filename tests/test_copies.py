"""Clones of a finished run as one function, and first looks at victims."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, load_script

from disguide_jax import main, models
from disguide_jax.core import pixels
from disguide_jax.errors import UserError, exit_status
from disguide_jax.files import architectures, datasets, weights
from disguide_jax.options import VictimConfig
from disguide_jax.run import copies, first_look
from disguide_jax.run.first_look import advice, usual

SPACES = ("pre-transform", "post-transform")


@pytest.fixture(scope="module", params=SPACES)
def workdir(request, tmp_path_factory) -> pathlib.Path:
    """The workdir of a run whose attacker sends images in this space."""
    place = tmp_path_factory.mktemp(request.param) / "w"
    argv = ["main", f"--config={ROOT / 'configs/digits_hard.py'}:smoke", f"--workdir={place}"]
    argv += [f"--config.victim.input_space={request.param}"]
    argv += ["--config.victim.mean=(0.3,)", "--config.victim.std=(0.2,)"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exit_:
            main.run()
    assert not exit_.value.code
    return place


def space_of(workdir: pathlib.Path) -> str:
    return json.loads((workdir / "config.json").read_text())["config"]["victim"]["input_space"]


def run_script(name: str, monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return exit_status(load_script(name).main)


def test_the_function_is_the_vote_of_the_clones_in_their_own_input_space(workdir):
    copy = copies.load_clones(workdir)
    images = datasets.load("digits", "test").images[:6]
    x = images / 127.5 - 1
    if space_of(workdir) == "post-transform":
        x = (images / 255 - 0.3) / 0.2
    each = []
    for i in range(2):
        state_dict = weights.load_state_dict(workdir / f"clones/clone_{i}.safetensors")
        found = architectures.recognise(state_dict, "clone")
        net = models.make_classifier(**found._asdict())
        variables = weights.fit(state_dict, jax.eval_shape(net.init, jax.random.key(0)), "clone")
        each.append(jax.nn.softmax(net.apply(variables, jnp.float32(x), train=False)[0]))
    np.testing.assert_allclose(copy(images), (each[0] + each[1]) / 2, atol=1e-5)
    np.testing.assert_allclose(copy(pixels.decode(jnp.asarray(images))), copy(images), atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda c, x: c(x))(copy, images), copy(images), atol=1e-5)
    grad = jax.grad(lambda x: copy(x)[:, 0].sum())(pixels.decode(jnp.asarray(images)))
    assert grad.shape == images.shape
    assert np.abs(grad).max() > 0


def test_the_script_repeats_what_the_run_has_measured(workdir, monkeypatch, capsys, tmp_path):
    named = tmp_path / "named.npy"
    assert run_script("evaluate_clones", monkeypatch, workdir, "--predictions", named) == 0
    said = capsys.readouterr().out
    summary = json.loads((workdir / "summary.json").read_text())
    for name in ("soft_vote", "hard_vote"):
        assert f"{name.replace('_', ' ')}  {summary[f'{name}_accuracy']:.4f}" in said
    assert f"fidelity   {summary['fidelity']:.4f}" in said
    assert ", ".join(f"{a:.4f}" for a in summary["clone_accuracy"]) in said
    right = (np.load(named) == datasets.load("digits", "test").labels).mean()
    assert right == pytest.approx(summary["soft_vote_accuracy"])


def test_a_clone_is_evaluated_as_a_victim_in_its_own_input_space(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    config = VictimConfig(str(workdir / "clones/clone_1.safetensors"))
    said = first_look.report(config, "digits", "", "")
    assert f"accuracy {summary['clone_accuracy'][1]:.4f}" in said


def test_clones_that_are_not_there_or_do_not_fit_are_named(workdir, monkeypatch, capsys, tmp_path):
    with pytest.raises(UserError, match=r"absent is no workdir: there is no config\.json"):
        copies.load_clones(tmp_path / "absent")
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(UserError, match=r"has no clones/clone_0.safetensors: .* continues"):
        copies.load_clones(tmp_path)
    (tmp_path / "clones").mkdir()
    clone = (workdir / "clones/clone_0.safetensors").read_bytes()
    (tmp_path / "clones/clone_0.safetensors").write_bytes(clone)
    (tmp_path / "clones/clone_1.safetensors").write_bytes(clone[:-4])
    with pytest.raises(UserError, match=r"clone_1.safetensors: cannot be read as weights"):
        copies.load_clones(tmp_path)
    for dataset, what in (("noise10", "channels is 3"), ("absent", "unknown data set")):
        assert run_script("evaluate_clones", monkeypatch, workdir, "--dataset", dataset) == 2
        assert what in capsys.readouterr().err


def test_a_wrong_range_is_found_out_and_the_right_one_named(tmp_path, monkeypatch, capsys):
    source = first_look.network.ASSETS / "digits-lenet5.safetensors"
    bare = tmp_path / "bare.safetensors"  # which says nothing of its training
    weights.save_state_dict(bare, weights.load_state_dict(source))
    look = ("--weights", bare, "--dataset", "digits")
    assert run_script("evaluate_victim", monkeypatch, *look) == 0
    assert "accuracy 0.9880" in capsys.readouterr().out
    wrong = ("--mean", "60", "--std", "5")
    assert run_script("evaluate_victim", monkeypatch, *look, *wrong) == 0
    said = capsys.readouterr().out
    assert (
        "With --mean 0.5 --std 0.5 (images in [-1, 1]) it is right on 98.8% of the first 500"
        in said
    )
    space = ("--input_space", "pre-transform")
    assert run_script("evaluate_victim", monkeypatch, *look, *space) == 0
    assert "accuracy 0.9880" in capsys.readouterr().out
    assert run_script("evaluate_victim", monkeypatch, *look, *space, *wrong) == 2
    assert "without --mean and --std" in capsys.readouterr().err


def test_advice_names_what_is_best_and_nothing_that_is_worse():
    known = usual(3)
    assert {len(part) for pair in known.values() for part in pair} == {3}
    shares = dict.fromkeys(known, 20) | {"ImageNet": 70}
    (line,) = advice(shares, known, 30, 100)
    assert "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 (ImageNet)" in line
    assert "70.0% of the first 100 images, as told on 30.0%" in line
    (line,) = advice(dict.fromkeys(known, 20), known, 30, 100)
    assert line.startswith("No usual normalisation does better")
    assert len(usual(1)) == 5  # three ranges, two data sets in gray
