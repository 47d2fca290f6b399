"""Weight files as ONNX files, which any runtime computes: a victim to try, or a copied clone.

The graph takes images [N, channels, H, W], float32 from 0 to 1, normalises them itself, and ends
with probabilities [N, K]. It needs what pip install 'disguide_jax[onnx]' brings.
"""

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from disguide_jax.errors import UserError
from disguide_jax.files import atomic, datasets, weights
from disguide_jax.options import VictimConfig
from disguide_jax.victims import network

OPSET, IR_VERSION = 17, 9  # what ONNX Runtime 1.15 and later read
NUM_STAGES = 4  # of a ResNet


class Graph:
    """Nodes one after the other, each fed by the one before unless told otherwise.

    Args:
      state_dict: weights under PyTorch's names.
    """

    def __init__(self, state_dict: Mapping[str, np.ndarray]):
        from onnx import helper, numpy_helper

        self._helper, self._numpy, self._weights = helper, numpy_helper, state_dict
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.last = "images"

    def constant(self, name: str, value: np.ndarray) -> str:
        """A constant of the graph; returns its name."""
        self.constants[name] = self._numpy.from_array(np.ascontiguousarray(value), name)
        return name

    def weight(self, name: str) -> str:
        """One of the weights, in float32."""
        return self.constant(name, np.asarray(self._weights[name], np.float32))

    def has(self, name: str) -> bool:
        """Whether there are such weights."""
        return name in self._weights

    def add(self, kind: str, *more: str, into: str | None = None, **attributes: Any) -> str:
        """A node of what came last, or `into`, and more inputs; returns the name of its output."""
        out = f"{kind.lower()}_{len(self.nodes)}"
        inputs = [into or self.last, *more]
        self.nodes.append(self._helper.make_node(kind, inputs, [out], **attributes))
        self.last = out
        return out

    def conv(self, name: str, *, stride: int = 1, padding: int = 0, into: str | None = None) -> str:
        """A convolution by its name, with its bias where it has one."""
        bias = [self.weight(f"{name}.bias")] if self.has(f"{name}.bias") else []
        attributes = {"strides": [stride] * 2, "pads": [padding] * 4}
        return self.add("Conv", self.weight(f"{name}.weight"), *bias, into=into, **attributes)

    def norm(self, name: str) -> str:
        """A batch norm by its name."""
        names = ("weight", "bias", "running_mean", "running_var")
        return self.add("BatchNormalization", *(self.weight(f"{name}.{n}") for n in names))

    def linear(self, name: str) -> str:
        """A linear layer by its name."""
        both = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("Gemm", *both, transB=1)


def lenet(graph: Graph) -> None:
    """The nodes of LeNet-5 (see `models.lenet`), up to its logits."""
    for i in (1, 2, 3):
        graph.conv(f"conv{i}")
        graph.add("Relu")
        if i < 3:
            graph.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    graph.add("Flatten")
    graph.linear("fc1")
    graph.add("Relu")
    graph.linear("fc2")


def resnet(graph: Graph) -> None:
    """The nodes of a CIFAR ResNet (see `models.resnet`), up to its logits."""
    graph.conv("conv1", padding=1)
    graph.norm("bn1")
    x = graph.add("Relu")
    for stage in range(1, NUM_STAGES + 1):
        for block in itertools.count():
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            if not graph.has(f"{at}.conv1.weight"):
                break
            graph.conv(f"{at}.conv1", stride=stride, padding=1, into=x)
            graph.norm(f"{at}.bn1")
            graph.add("Relu")
            graph.conv(f"{at}.conv2", padding=1)
            y = graph.norm(f"{at}.bn2")
            if graph.has(f"{at}.shortcut.0.weight"):
                graph.conv(f"{at}.shortcut.0", stride=stride, into=x)
                x = graph.norm(f"{at}.shortcut.1")
            graph.add("Add", y, into=x)
            x = graph.add("Relu")
    graph.add("GlobalAveragePool")
    graph.add("Flatten")
    graph.linear("linear")


GRAPHS = {"resnet18_8x": resnet, "resnet34_8x": resnet, "lenet5": lenet, "lenet5_half": lenet}


def export(source: str, target: pathlib.Path, dataset: str, data_dir: str = "") -> str:
    """Writes a weight file as an ONNX file; returns what it is in a line.

    Args:
      source: a .safetensors, .pt or .pth file, or embedded:NAME.
      target: of the ONNX file.
      dataset: whose classes, channels and normalisation it has.
      data_dir: where the data set lies.

    Raises:
      UserError: the weights are absent or of another kind, onnx is not installed, or the file
        cannot be written.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError("this needs `pip install 'disguide_jax[onnx]'`") from error
    config, info = VictimConfig(weights=source), datasets.describe(dataset, data_dir)
    _, _, found = network.load_network(
        config, num_classes=info.num_classes, size=info.size, channels=info.channels
    )
    if found.model not in GRAPHS:
        raise UserError(f"{source} is of a {found.model}; only {', '.join(GRAPHS)} can be exported")
    graph = Graph(weights.load_state_dict(network.weights_path(config)))
    mean, std = (
        np.asarray(x, np.float32).reshape(1, -1, 1, 1) for x in network.normalisation(config, info)
    )
    graph.add("Sub", graph.constant("mean", mean))
    graph.add("Div", graph.constant("std", std))
    GRAPHS[found.model](graph)
    graph.add("Softmax", axis=1)

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    shape: list[str | int | None] = ["N", info.channels, info.size, info.size]
    images = helper.make_tensor_value_info("images", kind, shape)
    answers = helper.make_tensor_value_info(graph.last, kind, ["N", info.num_classes])
    made = helper.make_graph(
        graph.nodes, found.model, [images], [answers], list(graph.constants.values())
    )
    imports = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(made, opset_imports=imports, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(target) as file:
            file.write(model.SerializeToString())
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from error
    return (
        f"{target}: {found.model} of width {found.width}, {info.num_classes} classes, {shape[1:]}"
    )
