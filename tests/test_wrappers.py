"""Weights of networks that were wrapped, counted, averaged or normalised are the networks'."""

import json

import numpy as np
import pytest
from conftest import load_script
from test_convert import LENET, RESNET, assert_same_bits, random_weights

from disguide_jax.errors import UserError, exit_status
from disguide_jax.files import architectures, datasets, weights, wrappers
from disguide_jax.options import VictimConfig
from disguide_jax.victims import network

NETWORK = random_weights(RESNET)
OTHER = {name: array + 1 for name, array in NETWORK.items()}
TEACHER = random_weights(LENET)
COUNTER, NUMBER = np.array(3), np.zeros(1)  # as buffers are registered
MEAN, STD = np.array([0.49, 0.48, 0.45], np.float32), np.array([0.25, 0.24, 0.26], np.float32)


def within(prefix: str, arrays: dict) -> dict:
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def without_head(arrays: dict) -> dict:
    return {name: array for name, array in arrays.items() if not name.startswith("linear.")}


HEAD = {name: array for name, array in NETWORK.items() if name.startswith("linear.")}

WRAPPED = {  # a state dict, and what must be said of it
    "bare": (NETWORK, ""),
    "Lightning": (within("model.", NETWORK), "took the prefix model. off"),
    "compiled": (within("_orig_mod.", NETWORK), "took the prefix _orig_mod. off"),
    "a backbone": (within("backbone.", NETWORK), "took the prefix backbone. off"),
    "nested": (within("net.module._orig_mod.model.", NETWORK), "net.module._orig_mod.model. off"),
    "a name of one's own": (within("my_resnet.", NETWORK), "took the prefix my_resnet. off"),
    "averaged": (within("module.", NETWORK) | {"n_averaged": COUNTER}, "left out n_averaged"),
    "profiled": (
        NETWORK | {"total_ops": NUMBER, "layer1.0.conv1.total_params": NUMBER},
        "left out total_ops, layer1.0.conv1.total_params",
    ),
    "profiled, then wrapped": (
        within("module.", NETWORK | {"total_ops": NUMBER, "conv1.total_ops": NUMBER}),
        "left out module.total_ops, module.conv1.total_ops",
    ),
    "a loss with weights": (
        within("net.", NETWORK) | {"criterion.weight": np.ones(3), "val_acc.seen": COUNTER},
        "left out criterion.weight, val_acc.seen",
    ),
    "a head beside it": (
        within("encoder.", without_head(NETWORK)) | HEAD,
        "took the prefix encoder. off",
    ),
    "a copy beside it": (
        within("ema.module.", OTHER) | within("model.", NETWORK),
        "left out ema: networks beside model",
    ),
    "a copy of another name": (
        within("model.", NETWORK) | within("best.", OTHER),
        "left out best: networks beside model",
    ),
    "a teacher beside it": (
        within("teacher.", TEACHER) | within("student.", NETWORK),
        "left out teacher: networks beside student",
    ),
    "behind what has no weights": (within("1.", NETWORK), "give its --mean and --std"),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrappers_are_taken_off_and_said(case):
    arrays, said = WRAPPED[case]
    found = wrappers.unwrap(arrays)
    assert_same_bits(found.arrays, NETWORK)
    assert found.normalisation == {}
    assert said in "; ".join(found.notes)
    assert bool(said) == bool(found.notes)


def test_what_belongs_to_a_network_stays():
    kernel, vector = np.zeros((4, 3, 3, 3)), np.zeros(4)
    vgg = within("features.", {"0.weight": kernel, "0.bias": vector})
    vgg |= {"classifier.weight": np.zeros((2, 4)), "classifier.bias": np.zeros(2)}
    batches = {"bn1.num_batches_tracked": COUNTER}
    for arrays in (
        vgg,
        {"fc.weight": np.zeros((2, 4)), "fc.bias": np.zeros(2)},
        {"0.weight": kernel, "0.bias": vector, "1.weight": vector, "1.running_mean": vector},
        NETWORK | batches,
        TEACHER,
        NETWORK | {"temperature": NUMBER},  # changes what the network answers
        NETWORK | {"mean": MEAN},
        NETWORK | {"mean": MEAN, "std": np.zeros(3)},
        within("first.", NETWORK) | within("second.", TEACHER),
    ):
        found = wrappers.unwrap(arrays)
        assert_same_bits(found.arrays, arrays)
        assert found.notes == []
    found = wrappers.unwrap(within("model.", NETWORK) | {"temperature": NUMBER})
    assert_same_bits(found.arrays, NETWORK | {"temperature": NUMBER})


NORMALISED = {
    "first of a Sequential": within("1.", NETWORK) | {"0.mean": MEAN, "0.std": STD},
    "images of 255": NETWORK | {"mean": MEAN * 255, "std": STD * 255},
    "broadcast": within("module.model.", NETWORK)
    | {"module.norm.mean": MEAN[:, None, None], "module.norm.std": STD[:, None, None]},
    "Greek": within("net.", NETWORK)
    | {"normalizer.mu": MEAN.reshape(1, 3, 1, 1), "normalizer.sigma": STD.reshape(1, 3, 1, 1)},
}


@pytest.mark.parametrize("case", NORMALISED)
def test_a_layer_that_normalises_is_named_and_kept_as_mean_and_std(case):
    found = wrappers.unwrap(NORMALISED[case])
    assert_same_bits(found.arrays, NETWORK)
    np.testing.assert_allclose(found.normalisation["mean"], MEAN, atol=1e-6)
    np.testing.assert_allclose(found.normalisation["std"], STD, atol=1e-6)
    assert "--mean 0.49 0.48 0.45 --std 0.25 0.24 0.26" in found.notes[0]


def test_a_victim_behind_its_own_normalisation_is_normalised_as_it_says(tmp_path):
    weights.save_state_dict(tmp_path / "w", NORMALISED["first of a Sequential"])
    config, info = VictimConfig(weights=str(tmp_path / "w")), datasets.describe("cifar10")
    mean, std = network.normalisation(config, info)
    assert mean == (0.49, 0.48, 0.45)
    assert std == (0.25, 0.24, 0.26)
    single = {"0.mean": MEAN[:1], "0.std": STD[:1]} | within("1.", NETWORK)
    weights.save_state_dict(tmp_path / "w", single)
    assert network.normalisation(config, info) == ((0.49,) * 3, (0.25,) * 3)


# --- The script -------------------------------------------------------------


@pytest.fixture
def convert_victim(monkeypatch, tmp_path):
    """Runs scripts/convert_victim.py on arrays; returns its exit status and the new metadata."""
    script = load_script("convert_victim")

    def run(arrays: dict, *flags: str) -> tuple[int, dict[str, str]]:
        source, target = str(tmp_path / "in"), str(tmp_path / "out")
        weights.save_state_dict(source, arrays)
        monkeypatch.setattr("sys.argv", ["convert_victim.py", source, target, *flags])
        status = exit_status(script.main)
        return status, weights.load_metadata(target) if status == 0 else {}

    return run


def test_script_says_what_it_took_off_and_keeps_the_normalisation(convert_victim, capsys):
    status, metadata = convert_victim(NORMALISED["first of a Sequential"])
    assert status == 0
    assert json.loads(metadata["mean"]) == [0.49, 0.48, 0.45]
    out = capsys.readouterr().out
    assert "took the prefix 1. off the names" in out
    assert "behind its own normalisation, 0.mean and 0.std" in out


def test_script_prefers_the_normalisation_that_it_is_given(convert_victim):
    given = ["--mean", "0.1", "0.1", "0.1", "--std", "0.5", "0.5", "0.5"]
    _, metadata = convert_victim(NORMALISED["first of a Sequential"], *given)
    assert json.loads(metadata["mean"]) == [0.1, 0.1, 0.1]
    assert json.loads(metadata["std"]) == [0.5, 0.5, 0.5]


def test_script_says_what_it_took_off_where_the_rest_does_not_fit(convert_victim, capsys):
    arrays = within("model.", NETWORK | {"linear.bias": np.zeros(7, np.float32)})
    assert convert_victim(arrays)[0] == 2
    err = capsys.readouterr().err
    assert "(took the prefix model. off the names)" in err
    assert "linear.bias is [7] instead of [3]" in err


def test_files_from_the_field_are_read(shared):
    field = shared / "field"
    for name, said in {
        "acc_np_scalar.pth": "",
        "swa_averaged.pt": "left out n_averaged",
        "lightning_model_prefix.ckpt": "took the prefix model. off",
        "torch03.pth": "took the prefix module. off",
    }.items():
        if not (field / name).is_file():
            pytest.skip(f"needs {field.name}/{name} beside the project")
        found = weights.load(field / name)
        assert (
            architectures.recognise(weights.load_state_dict(field / name), name).model
            == "resnet18_8x"
        )
        assert said in "; ".join(found.notes)


def test_names_that_this_project_wrote_are_kept(tmp_path):
    arrays = within("net.", NETWORK)
    weights.save_state_dict(tmp_path / "w", arrays, {"model": "package.module:Name"})
    assert_same_bits(weights.load_state_dict(tmp_path / "w"), arrays)
    weights.save_state_dict(tmp_path / "w", arrays)
    assert_same_bits(weights.load_state_dict(tmp_path / "w"), NETWORK)
    with pytest.raises(UserError, match="absent"):
        weights.load(tmp_path / "absent")
