"""The program in PyTorch takes our configuration, and computes the same where PyTorch is there."""

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, load_script

from disguide_jax import models
from disguide_jax.core import answers, images, losses
from disguide_jax.files import weights

FOLDER = ROOT / "scripts/side_by_side"
HERE = {  # more than the kept summary, an older one, has
    "query_dtype": "float32",
    "precision": "float32",
    "disguide": {"generator_steps": 1, "fresh_batches": 1},
}


@pytest.fixture
def refused(tmp_path):
    """What the program answers to digits_soft with one key changed."""

    def refused(key: str, value: object, *arguments: str) -> str:
        summary = ROOT / "results/digits/digits_soft/seed0/summary.json"
        config = json.loads(summary.read_text())["config"] | HERE
        *groups, name = key.split(".")
        group = config
        for part in groups:
            group = group[part]
        group[name] = value
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"config": config}))
        command = [sys.executable, FOLDER, "--config_json", path, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    return refused


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", "maze"),
        ("precision", "bfloat16"),
        ("victim.input_space", "post-transform"),
        ("victim.weights", "nowhere.safetensors"),
        ("clones.average_decay", 0.9),
        ("replay.flip", True),
        ("schedule.shape", "cosine"),
    ],
)
def test_what_it_does_not_do_is_refused_by_name(refused, key, value):
    assert f"config.{key} is {value!r}" in refused(key, value)


def test_other_mistakes_are_one_message(refused, tmp_path):
    assert "pays for no round" in refused("query_budget", 15)
    assert "no file nowhere.npz" in refused("seed", 0, "--data=nowhere.npz")
    assert "not what a run of today's program left" in refused("replay", {})
    if importlib.util.find_spec("torch") is None:
        assert "torch is not installed" in refused("seed", 0)


def test_its_files_are_short():
    for path in FOLDER.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path


def test_losses_are_ours():
    torch = pytest.importorskip("torch")
    learn = load_script(FOLDER / "learn.py")
    key = jax.random.key(0)
    logits = 3 * jax.random.normal(key, (2, 16, 10))
    probs = jax.nn.softmax(3 * jax.random.normal(jax.random.fold_in(key, 1), (16, 10)))
    ours = {
        "generator": lambda x: losses.generator_loss(x, diversity_weight=0.2)[0],
        "l1": lambda x: answers.l1(1e-30)(x, probs).mean(-1).sum(),
        "cross_entropy": lambda x: answers.cross_entropy(1e-30)(x, probs).mean(-1).sum(),
        "hard": lambda x: answers.hard().loss(x, probs.argmax(-1)).mean(-1).sum(),
    }
    known = torch.tensor(np.asarray(probs))
    theirs = {
        "generator": lambda x: learn.generator_loss(x, 0.2),
        "l1": lambda x: learn.clone_loss(x, known, "l1"),
        "cross_entropy": lambda x: learn.clone_loss(x, known, "cross_entropy"),
        "hard": lambda x: learn.clone_loss(x, known.argmax(-1), "l1"),
    }
    for name, loss in ours.items():
        value, gradient = jax.value_and_grad(loss)(logits)
        x = torch.tensor(np.asarray(logits), requires_grad=True)
        theirs[name](x).backward()
        np.testing.assert_allclose(theirs[name](x).item(), value, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(x.grad.numpy(), gradient, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["resnet18_8x", "resnet34_8x", "lenet5", "lenet5_half", "dfme"])
@pytest.mark.parametrize("train", [False, True])
def test_networks_are_ours(name, train, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(FOLDER)
    if name == "dfme":
        net = models.make_generator(name, width=4, latent_dim=8, size=32, channels=3)
        theirs = load_script(FOLDER / "generator.py").Generator(8, 4, 3, 0)
        x = jax.random.normal(jax.random.key(1), (6, 8))
    else:
        width = 4 if "resnet" in name else models.usual_width(name)
        net = models.make_classifier(name, width=width, num_classes=5, size=32, channels=3)
        theirs = load_script(FOLDER / "classifiers.py").make_classifier(name, width, 3, 5)
        x = jax.random.normal(jax.random.key(1), (6, 32, 32, 3))
    variables = net.init(jax.random.key(0))
    variables = variables._replace(batch_stats=jax.tree.map(lambda s: s + 0.1, variables[1]))
    expected, batch_stats = jax.jit(net.apply, static_argnames="train")(variables, x, train=train)
    state = weights.to_state_dict(variables)
    theirs.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    theirs.train(train)
    with torch.no_grad():
        if name == "dfme":
            found = theirs(torch.tensor(np.asarray(x))).numpy().transpose(0, 2, 3, 1)
            expected = jnp.tanh(expected)
        else:
            found = theirs(torch.tensor(np.asarray(x)).movedim(-1, 1)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    after = theirs.state_dict()
    for path, array in weights.to_state_dict(variables._replace(batch_stats=batch_stats)).items():
        np.testing.assert_allclose(after[path].numpy(), array, atol=1e-4, err_msg=path)


def test_gray_images_are_ours():
    torch = pytest.importorskip("torch")
    to_gray = load_script(FOLDER / "generator.py").to_gray
    x = np.random.default_rng(0).normal(size=(10, 3, 4, 4)).astype(np.float32)
    found = torch.tensor(x, requires_grad=True)
    gray = to_gray(found, 8)
    gray.square().sum().backward()
    kept = int(found.grad[0].abs().sum((1, 2)).argmax())
    ours = images.to_gray(jnp.asarray(x.transpose(0, 2, 3, 1)), jnp.int32(kept), every=8)
    np.testing.assert_array_equal(gray.detach().numpy().transpose(0, 2, 3, 1), ours)
    gradient = jax.grad(lambda x: jnp.square(images.to_gray(x, jnp.int32(kept), every=8)).sum())
    expected = gradient(jnp.asarray(x.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found.grad.numpy(), expected)
