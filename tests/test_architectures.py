"""Weights of networks that are not quite this project's: what they were taken for, and look like.

That those of public zoos are recognised is in `test_networks.py`.
"""

import functools
import json

import jax
import numpy as np
import pytest
from conftest import load_script

from disguide_jax import models
from disguide_jax.errors import UserError, exit_status
from disguide_jax.files import architectures, weights
from disguide_jax.options import VictimConfig
from disguide_jax.victims import network


@functools.cache
def state_dict_of(model: str, width: int = 2) -> weights.StateDict:
    net = models.make_classifier(model, width=width, num_classes=3, size=32, channels=3)
    template = jax.eval_shape(net.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return weights.to_state_dict(
        jax.tree.map(lambda x: rng.uniform(0.5, 1, x.shape).astype(np.float32), template)
    )


def with_shapes(**shapes: tuple[int, ...]) -> weights.StateDict:
    return {name.replace("__", "."): np.zeros(shape) for name, shape in shapes.items()}


def as_torchvision(state_dict: weights.StateDict) -> weights.StateDict:
    return {
        name.replace("shortcut", "downsample").replace("linear", "fc"): array
        for name, array in state_dict.items()
    }


def pre_activation() -> weights.StateDict:
    """A PreActResNet-18: batch norms have the channels of what comes in, and shortcuts none."""
    state_dict = dict(state_dict_of("resnet18_8x"))
    for name in list(state_dict):
        block, _, _ = name.rpartition(".bn1.")
        if block and f"{block}.conv1.weight" in state_dict:
            state_dict[name] = np.ones(state_dict[f"{block}.conv1.weight"].shape[1], np.float32)
        elif name.startswith("bn1.") or ".shortcut.1." in name:
            del state_dict[name]
    return state_dict


def bottleneck() -> weights.StateDict:
    state_dict = dict(state_dict_of("resnet34_8x"))
    return state_dict | with_shapes(layer1__0__conv3__weight=(8, 2, 1, 1))


TAKEN = {  # state dict, what it is taken for, and what it looks like
    "pre-activation": (pre_activation, "resnet18_8x of width 2", "pre-activation blocks"),
    "bottleneck": (bottleneck, "resnet34_8x of width 2", "bottleneck blocks, as ResNet-50 has"),
    "grouped": (
        lambda: state_dict_of("resnet18_8x") | with_shapes(layer1__0__conv2__weight=(2, 1, 3, 3)),
        "resnet18_8x of width 2",
        "convolutions in groups, as ResNeXts have",
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_does_not_fit_is_told_what_it_was_taken_for_and_looks_like(name, tmp_path):
    make, taken, looks = TAKEN[name]
    weights.save_state_dict(tmp_path / "w", make())
    with pytest.raises(UserError) as error:
        network.convert_victim(tmp_path / "w", tmp_path / "out")
    message = str(error.value)
    assert f"w, taken for a {taken} by a few of its names: does not fit the network:" in message
    assert f"It looks like {looks}" in message
    assert "--config.victim.model=package.module:Name" in message


def tutorial(num_fc: int = 3) -> weights.StateDict:
    sizes = ((120, 400), (84, 120), (10, 84), (10, 10))
    fc = {f"fc{i}__weight": size for i, size in enumerate(sizes[:num_fc], start=1)}
    return with_shapes(conv1__weight=(6, 3, 5, 5), conv2__weight=(16, 6, 5, 5), **fc)


UNKNOWN = {
    "tutorial": (tutorial, "the LeNet of PyTorch's tutorial, two convolutions and fc1 to fc3"),
    "two convolutions": (lambda: tutorial(2), "a LeNet, but those here have conv1.weight"),
    "7x7 stem": (
        lambda: state_dict_of("resnet18_8x") | with_shapes(conv1__weight=(2, 3, 7, 7)),
        "a stem of 7x7 pixels",
    ),
    "vgg without batch norm": (
        lambda: with_shapes(features__0__weight=(64, 3, 3, 3), classifier__weight=(10, 64)),
        "a VGG or an AlexNet without batch norm",
    ),
    "transformer": (
        lambda: with_shapes(cls_token=(1, 1, 8), patch_embed__proj__weight=(8, 3, 4, 4)),
        "a vision transformer",
    ),
    "perceptron": (lambda: with_shapes(a__weight=(10, 64)), "a network without convolutions"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_recognised_is_told_what_it_looks_like(name):
    make, looks = UNKNOWN[name]
    with pytest.raises(UserError, match="not the weights of a classifier") as error:
        architectures.recognise(make(), "w")
    assert f"It looks like {looks}" in str(error.value)
    assert "num_classes" not in str(error.value)


def test_unknown_weights_that_look_like_nothing_are_not_told_so():
    assert architectures.looks_like(with_shapes(a__weight=(4, 3, 3, 3))) == ""


def test_a_number_in_a_name_may_be_of_any_length():
    names = {"layer1.0.conv1.weight": np.zeros(1), f"layer{'9' * 5000}.0.downsample.0.": np.ones(1)}
    assert architectures.with_our_names(names).keys() == names.keys()


# --- Pools ------------------------------------------------------------------


@pytest.fixture
def convert(monkeypatch, capsys):
    """Runs scripts/convert_victim.py; returns its exit status and what it says."""
    script = load_script("convert_victim")

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["convert_victim.py", *map(str, arguments)])
        status = exit_status(script.main)
        return status, "".join(capsys.readouterr())

    return run


def test_torchvisions_names_are_a_reason_to_evaluate_first(convert, tmp_path):
    state_dict = state_dict_of("resnet18_8x")
    weights.save_state_dict(tmp_path / "theirs", as_torchvision(state_dict))
    weights.save_state_dict(tmp_path / "ours", state_dict)
    status, said = convert(tmp_path / "theirs", tmp_path / "a")
    assert status == 0
    assert "whether it has a max-pool after the stem; it is taken for a resnet18_8x" in said
    assert "Evaluate it first: if it is near chance, say --model resnet18_8x_pool" in said
    assert "warning" not in convert(tmp_path / "ours", tmp_path / "b")[1]
    assert (
        "warning"
        not in convert(tmp_path / "theirs", tmp_path / "c", "--model", "resnet18_8x_pool")[1]
    )


@pytest.mark.parametrize("model", ["resnet18_8x", "resnet34_8x"])
def test_a_victim_has_the_pool_that_its_owner_or_its_file_says(model, convert, tmp_path):
    weights.save_state_dict(tmp_path / "w", state_dict_of(model, width=4))
    arguments = ("--model", f"{model}_pool", "--mean", "0", "--std", "1")
    assert convert(tmp_path / "w", tmp_path / "pooled", *arguments)[0] == 0
    load = functools.partial(network.load_network, num_classes=3, size=32, channels=3)
    for file, asked, found in (
        ("w", "", model),
        ("w", f"{model}_pool", f"{model}_pool"),
        ("pooled", "", f"{model}_pool"),
        ("pooled", f"{model}_pool", f"{model}_pool"),
    ):
        config = VictimConfig(weights=str(tmp_path / file), model=asked)
        assert load(config)[2].model == found
    config.model = model
    with pytest.raises(UserError, match=f"model is '{model}_pool', but the .* needs '{model}'"):
        load(config)


def test_the_pool_is_computed(tmp_path):
    weights.save_state_dict(tmp_path / "w", state_dict_of("resnet18_8x"))
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    logits = [
        net.apply(variables, images, train=False)[0]
        for net, variables, _ in (
            network.load_network(
                VictimConfig(weights=str(tmp_path / "w"), model=model),
                num_classes=3,
                size=8,
                channels=3,
            )
            for model in ("", "resnet18_8x_pool")
        )
    ]
    assert not np.allclose(*logits, rtol=1e-3)


def test_a_model_that_the_weights_are_not_of_is_refused(convert, tmp_path):
    weights.save_state_dict(tmp_path / "w", state_dict_of("resnet18_8x"))
    for model in ("resnet34_8x_pool", "vgg11_bn", "other:Net"):
        status, said = convert(tmp_path / "w", tmp_path / "out", "--model", model)
        assert status == 2
        assert f"w: it is of a resnet18_8x, and not of --model {model}: that matters only" in said
    assert not (tmp_path / "out").exists()


def test_files_of_the_field(shared, convert, tmp_path):
    status, said = convert(shared / "field/tutorial_lenet.pth", tmp_path / "out")
    assert status == 2
    assert "It looks like the LeNet of PyTorch's tutorial" in said
    assert "84" not in said.split("Found")[0]
    pooled = ("--model", "resnet18_8x_pool")
    assert convert(shared / "field/maxpool_stem.pt", tmp_path / "out", *pooled)[0] == 0
    assert json.loads(weights.load_metadata(tmp_path / "out")["width"]) == 8
    assert "warning" in convert(shared / "field/maxpool_stem.pt", tmp_path / "other")[1]
