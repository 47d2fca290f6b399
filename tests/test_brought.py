"""Flax modules of a user's own: as clones, as victims, and what is said where they are wrong."""

import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from disguide_jax import main, models
from disguide_jax.config import VictimTrainingConfig
from disguide_jax.errors import UserError
from disguide_jax.files import weights
from disguide_jax.options import VictimConfig
from disguide_jax.run import copies, supervised
from disguide_jax.victims import network

MODULES = """
from flax import linen as nn

class Inner(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.DenseGeneral((2, self.features // 2), name="heads")(x).reshape(len(x), -1)

class Small(nn.Module):
    num_classes: int
    width: int = 4

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(self.width, (3, 3), strides=4, name="fc.conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x)).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, name="fc")(Inner(self.width)(x))

class Fixed(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))

class Images(Fixed):
    def __call__(self, x, *, train):
        return x

class Pair(Fixed):
    def __call__(self, x, *, train):
        return x, x

class Raises(Fixed):
    def __call__(self, x, *, train):
        raise RuntimeError("out of order")

class Drops(Fixed):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dropout(0.5, deterministic=not train)(x.mean(axis=(1, 2)))
        return nn.Dense(self.num_classes)(x)

class NoTrain(Fixed):
    def __call__(self, x):
        return x

class NoClasses(nn.Module):
    def __call__(self, x, *, train):
        return x

def function(x):
    return x
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine.py").write_text(MODULES)
    (tmp_path / "broken.py").write_text("1 / 0")
    yield
    sys.modules.pop("mine", None)


make = functools.partial(models.make_classifier, num_classes=5, size=16, channels=3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("absent:Net", r"model 'absent:Net': No module named 'absent' \(looked in "),
        ("broken:Net", r"importing broken fails: ZeroDivisionError: .*broken\.py, line 1\)"),
        ("mine:Absent", "model 'mine:Absent': module 'mine' has no attribute 'Absent'"),
        ("mine:function", "'mine:function' is not a Flax module, a class below flax.linen.Module"),
        ("mine:", "model is 'mine:'; it must be package.module:Name"),
        ("mine:NoClasses", r"cannot be made: TypeError: .*num_classes"),
        ("mine:Raises", r"fails on images \[2, 16, 16, 3\] with train=False: RuntimeError: out of"),
        ("mine:NoTrain", r"with train=False: TypeError: .*'train'"),
        ("mine:Drops", r"with train=True: InvalidRngError: "),
        ("mine:Images", r"returns \[2, 16, 16, 3\] for .*; it must be logits \[2, 5\]"),
        ("mine:Pair", r"returns a tuple for "),
    ],
)
def test_a_module_that_is_wrong_is_one_message(model, message):
    with pytest.raises(UserError, match=message):
        make(model)


def test_width_is_the_modules_own_unless_it_is_told():
    def num_features(width):
        variables = jax.eval_shape(make("mine:Small", width=width).init, jax.random.key(0))
        return variables.params["fc"]["kernel"].shape[0]

    assert (num_features(0), num_features(6)) == (4, 6)
    assert models.usual_width("mine:Small") == 4
    assert models.usual_width("mine:Fixed") == 0
    with pytest.raises(UserError, match="'mine:Fixed' has no field width, and width is 6"):
        make("mine:Fixed", width=6)


def saved(path, module: str, width: int = 0, metadata: dict | None = None):
    """Writes random weights of a module into a file, and returns them."""
    net = make(module, width=width)
    variables = jax.jit(net.init)(jax.random.key(3))
    state_dict = weights.to_state_dict(variables)
    weights.save_state_dict(path, state_dict, metadata)
    return variables


load = functools.partial(network.load_network, num_classes=5, size=16, channels=3)


def test_a_file_of_weights_has_the_names_of_modules_within_modules(tmp_path):
    variables = saved(tmp_path / "w", "mine:Small", width=6)
    names = weights.load(tmp_path / "w").state_dict
    assert names["fc.conv.weight"].shape == (6, 3, 3, 3)
    assert names["BatchNorm_0.running_var"].shape == (6,)
    assert names["Inner_0.heads.kernel"].shape == (6, 2, 3)
    config = VictimConfig(weights=str(tmp_path / "w"), model="mine:Small", width=6)
    _, again, found = load(config)
    assert (found.model, found.width) == ("mine:Small", 6)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    config.width = 4
    with pytest.raises(UserError, match=r"fc\.conv\.weight is \[6, 3, 3, 3\] instead of \[4"):
        load(config)


def test_names_of_a_module_are_not_respelled(tmp_path):
    """A file with torchvision's names fits a module that has them."""
    net = make("mine:Fixed")
    state_dict = weights.to_state_dict(net.init(jax.random.key(0)))
    assert list(state_dict) == ["Dense_0.bias", "Dense_0.weight"]
    torchvisions = {"layer1.0.conv1.weight": np.zeros(1), "fc.weight": np.zeros(1)}
    weights.save_state_dict(tmp_path / "w", torchvisions)
    assert weights.load(tmp_path / "w").state_dict.keys() == torchvisions.keys()
    with pytest.raises(UserError, match=r"fc\.weight \[1\] is unexpected"):
        load(VictimConfig(weights=str(tmp_path / "w"), model="mine:Fixed"))


def test_two_variables_of_one_name_are_refused():
    kernel = {"kernel": jnp.zeros((2, 2)), "scale": jnp.zeros(2)}
    with pytest.raises(UserError, match=r"would both be called a\.weight"):
        weights.to_state_dict(network.Variables({"a": kernel}, {}))


def test_a_file_does_not_choose_what_is_imported(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    saved(tmp_path / "w", "mine:Small", metadata={"model": "evil:Small"})
    with pytest.raises(UserError, match=r"of evil:Small, .* --config\.victim\.model=evil:Small"):
        load(VictimConfig(weights=str(tmp_path / "w")))
    assert "evil" not in sys.modules


@pytest.mark.slow
def test_a_module_is_trained_and_copied_and_its_copy_is_a_victim(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (32, 16, 16, 3), np.uint8), np.arange(32) % 10
    both = {"train_images": images, "train_labels": labels}
    both |= {"test_images": images, "test_labels": labels, "classes": np.arange(10)}
    np.savez(tmp_path / "mine.npz", **both)
    training = VictimTrainingConfig("t", "mine", "mine:Small", data_dir=".")
    training.batch_size, training.epochs = 8, 1
    training.evaluate_every_epochs = training.checkpoint_every_epochs = 1
    supervised.train_victim(training, tmp_path / "training")
    assert (tmp_path / "victims/mine-Small.safetensors").exists()
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "disguide_jax.main",
            f"--config={ROOT / 'configs/digits_soft.py'}:smoke",
            "--workdir=w",
            "--config.dataset=mine",
            "--config.data_dir=.",
            "--config.victim.weights=victims/mine-Small.safetensors",
            "--config.victim.model=mine:Small",
            "--config.victim.width=0",
            "--config.clones.model=mine:Small",
            "--config.clones.width=6",
        ],
    )
    with pytest.raises(SystemExit) as exit_:
        main.run()
    assert not exit_.value.code, capsys.readouterr().err
    clone = VictimConfig(weights="w/clones/clone_0.safetensors", model="mine:Small")
    found = load(clone, num_classes=10)[2]
    assert (found.model, found.width) == ("mine:Small", 6)
    summary = json.loads((tmp_path / "w/summary.json").read_text())
    with pytest.raises(UserError, match=r"of mine:Small, .* name it as the model"):
        copies.load_clones("w")
    said = copies.report(pathlib.Path("w"), "", "", "", "mine:Small")
    assert f"soft vote  {summary['soft_vote_accuracy']:.4f}" in said
    assert copies.load_clones("w", model="mine:Small")(images[:2]).shape == (2, 10)
