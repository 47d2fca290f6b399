"""Weight files as ONNX files: ONNX Runtime says of images what the network says."""

import numpy as np
import pytest
from conftest import load_script

from disguide_jax import models
from disguide_jax.errors import UserError
from disguide_jax.files import weights
from disguide_jax.options import VictimConfig
from disguide_jax.victims import export, network, serve
from disguide_jax.victims.contract import Contract
from disguide_jax.victims.endpoints import connect, sizes


def saved(path, model, num_classes=10, channels=3, **options):
    """Random weights with statistics that are not those of the start."""
    import jax

    options |= {"size": 32, "num_classes": num_classes, "channels": channels}
    net = models.make_classifier(model, **options)
    variables = jax.tree.map(
        lambda x: x + 0.1 * jax.random.uniform(jax.random.key(x.size), x.shape),
        jax.jit(net.init)(jax.random.key(3)),
    )
    weights.save_state_dict(path, weights.to_state_dict(variables), {"model": model})
    return str(path)


@pytest.mark.parametrize(
    ("model", "dataset", "channels", "width"),
    [
        ("lenet5", "digits", 1, 0),
        ("lenet5_half", "noise10", 3, 0),
        ("resnet18_8x", "noise10", 3, 4),
        pytest.param("resnet34_8x", "noise10", 3, 4, marks=pytest.mark.slow),
    ],
)
def test_the_file_answers_as_the_network_does(tmp_path, model, dataset, channels, width):
    source = saved(tmp_path / "w.safetensors", model, channels=channels, width=width)
    said = export.export(source, tmp_path / "new" / "v.onnx", dataset)
    assert model in said
    config = VictimConfig(endpoint=f"onnx:{tmp_path}/new/v.onnx")
    assert sizes(config) == {"image_size": 32, "channels": channels, "num_classes": 10}
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, channels), np.uint8)
    answers = connect(config, Contract(10, hard_labels=False)).ask(images, pytest.fail)
    np.testing.assert_allclose(answers, serve.load(source, dataset).classify(images), atol=2e-5)


def test_the_script_exports_what_comes_with_the_package(tmp_path, monkeypatch, capsys):
    target = str(tmp_path / "v.onnx")
    arguments = ["x", "embedded:digits-lenet5.safetensors", target, "--dataset", "digits"]
    monkeypatch.setattr("sys.argv", arguments)
    load_script("export_onnx").main()
    assert f"--config.victim.endpoint=onnx:{target}" in capsys.readouterr().out
    config = VictimConfig(endpoint=f"onnx:{target}", made_by="never needed")
    assert sizes(config)["num_classes"] == 10
    monkeypatch.setattr(network, "ASSETS", tmp_path)
    with pytest.raises(UserError, match="there is no file"):
        export.export("embedded:digits-lenet5.safetensors", tmp_path / "w.onnx", "digits")
