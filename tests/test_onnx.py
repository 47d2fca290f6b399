"""A victim in an ONNX file: it answers as NumPy does, and what does not fit is named."""

import hashlib
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from disguide_jax.errors import UserError
from disguide_jax.options import VictimConfig
from disguide_jax.victims.contract import Contract
from disguide_jax.victims.onnx import Onnx, fingerprint

SIZE, CHANNELS, NUM_CLASSES = 8, 3, 5
SOFT, HARD = Contract(NUM_CLASSES, False), Contract(NUM_CLASSES, True)
WEIGHTS = np.random.default_rng(0).normal(size=(SIZE * SIZE * CHANNELS, NUM_CLASSES), scale=0.3)
WEIGHTS = WEIGHTS.astype(np.float32)
IMAGES = np.random.default_rng(1).integers(0, 256, (20, SIZE, SIZE, CHANNELS), dtype=np.uint8)
NCHW, NHWC = [CHANNELS, SIZE, SIZE], [SIZE, SIZE, CHANNELS]
NAMES = {
    np.uint8: TensorProto.UINT8,
    np.float32: TensorProto.FLOAT,
    np.float16: TensorProto.FLOAT16,
}
ENDINGS = {
    "probabilities": ("Softmax", TensorProto.FLOAT, {"axis": 1}),
    "logits": ("Identity", TensorProto.FLOAT, {}),
    "labels": ("ArgMax", TensorProto.INT64, {"axis": 1, "keepdims": 0}),
    "a column of labels": ("ArgMax", TensorProto.INT64, {"axis": 1, "keepdims": 1}),
}


def save(path, nodes, inputs, outputs, weights=WEIGHTS, opset=17, **options):
    initializers = [numpy_helper.from_array(weights, "weights")]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    imports = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), path, **options)
    return path


def write(
    path, shape=NCHW, *, batch="N", dtype=np.float32, ends="probabilities", scale=1.0, **options
):
    """A linear classifier of the flat input."""
    ending, kind, attributes = ENDINGS[ends]
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node(ending, ["logits"], ["answers"], **attributes),
    ]
    images = helper.make_tensor_value_info("images", NAMES[dtype], [batch, *shape])
    answers = helper.make_tensor_value_info("answers", kind, None)
    return save(path, nodes, [images], [answers], WEIGHTS * np.float32(scale), **options)


def expected(values, shape=NCHW, scale=1.0):
    """The probabilities of the same classifier for [N, H, W, channels] in the input's range."""
    if shape == NCHW:
        values = values.transpose(0, 3, 1, 2)
    logits = values.reshape(len(values), -1).astype(np.float64) @ (WEIGHTS * scale)
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exps / exps.sum(axis=1, keepdims=True)


def load(path, contract=SOFT, **options):
    return Onnx(VictimConfig(endpoint=f"onnx:{path}", **options), contract)


def ask(path, images=IMAGES, contract=SOFT, **options):
    return load(path, contract, **options).ask(images, pytest.fail)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "victim.onnx"


@pytest.mark.parametrize("shape", [NCHW, NHWC])
def test_floats_get_0_to_1_in_the_layout_of_the_shape(path, shape):
    write(path, shape)
    answers = ask(path)
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, expected(IMAGES / 255, shape), atol=1e-6)
    np.testing.assert_array_equal(answers, ask(path))


RANGES = {
    "": lambda x: x / 255,
    "0..1": lambda x: x / 255,
    "-1..1": lambda x: x / 127.5 - 1,
    "0..255": lambda x: x * 1.0,
}


@pytest.mark.parametrize("pixels", RANGES)
def test_floats_get_the_range_that_is_said(path, pixels):
    scale = 1 / 255 if pixels == "0..255" else 1.0
    write(path, scale=scale)
    right = expected(RANGES[pixels](IMAGES), scale=scale)
    np.testing.assert_allclose(ask(path, pixels=pixels), right, atol=1e-5)


@pytest.mark.parametrize("pixels", ["", "0..255"])
def test_integers_get_pixels_as_they_are(path, pixels):
    write(path, dtype=np.uint8, scale=1 / 255)
    answers = ask(path, pixels=pixels)
    np.testing.assert_allclose(answers, expected(IMAGES, scale=1 / 255), atol=1e-5)


def test_half_floats_get_the_same_in_fewer_digits(path):
    write(path, dtype=np.float16)
    values = (IMAGES / 255).astype(np.float16)
    np.testing.assert_allclose(ask(path), expected(values), atol=1e-5)


def test_mean_and_std_normalise(path):
    write(path)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    right = expected((IMAGES / 255 - mean) / std)
    np.testing.assert_allclose(ask(path, mean=mean, std=std), right, atol=1e-5)


@pytest.mark.parametrize("contract", [SOFT, HARD])
def test_logits_become_probabilities_where_they_are_said_to_be_some(path, contract):
    write(path, ends="logits")
    right = expected(IMAGES / 255)
    answers = ask(path, contract=contract, logits=True)
    if contract.hard_labels:
        np.testing.assert_array_equal(answers, right.argmax(axis=1))
    else:
        np.testing.assert_allclose(answers, right, atol=1e-6)
    with pytest.raises(UserError, match=r"sum to 1; of logits, set config.victim.logits=true"):
        ask(path, contract=contract)


@pytest.mark.parametrize("ends", ["labels", "a column of labels"])
def test_labels_are_answers_too(path, ends):
    write(path, ends=ends)
    endpoint = load(path, HARD)
    assert endpoint.num_classes == 0
    answers = endpoint.ask(IMAGES, pytest.fail)
    assert answers.dtype == np.int32
    np.testing.assert_array_equal(answers, expected(IMAGES / 255).argmax(axis=1))
    with pytest.raises(UserError, match=r"set config.labels=hard"):
        ask(path)


@pytest.mark.parametrize(("batch", "counted"), [(1, []), (4, []), (8, [4]), (32, [12])])
def test_a_batch_of_one_size_is_filled_up_and_counted(path, batch, counted):
    write(path, batch=batch)
    found = []
    answers = load(path).ask(IMAGES, found.append)
    np.testing.assert_allclose(answers, expected(IMAGES / 255), atol=1e-6)
    assert found == counted


def test_a_count_that_raises_stops_it(path):
    write(path, batch=8)

    def count(num):
        raise KeyError(num)

    with pytest.raises(KeyError, match="4"):
        load(path).ask(IMAGES, count)


def write_any_size(path, shape):
    """A linear classifier of the mean colour."""
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["colour"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["colour", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["answers"], axis=1),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    answers = helper.make_tensor_value_info("answers", TensorProto.FLOAT, ["N", "K"])
    return save(path, nodes, [images], [answers], WEIGHTS[:CHANNELS])


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (["N", CHANNELS, "H", "W"], {}),
        ([None, CHANNELS, None, None], {}),
        (["N", "C", "H", "W"], {"layout": "NCHW"}),
        (None, {"layout": "NCHW"}),
    ],
)
def test_dimensions_may_be_free(path, shape, options):
    write_any_size(path, shape)
    endpoint = load(path, **options)
    assert endpoint.image_size == 0
    assert endpoint.channels == (CHANNELS if shape and CHANNELS in shape else 0)
    assert endpoint.num_classes in (0, NUM_CLASSES)
    logits = (IMAGES / 255).mean(axis=(1, 2)) @ WEIGHTS[:CHANNELS]
    right = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(endpoint.ask(IMAGES, pytest.fail), right, atol=1e-6)


@pytest.mark.parametrize("shape", [["N", "C", "H", "W"], None, [1, 3, 3, 3]])
def test_a_layout_that_no_shape_tells_must_be_said(path, shape):
    write_any_size(path, shape)
    with pytest.raises(UserError, match=r"set config.victim.layout to NCHW or NHWC"):
        load(path)


@pytest.mark.parametrize("shape", [NCHW, NHWC])
def test_what_the_file_says_can_be_read(path, shape):
    write(path, shape)
    config = VictimConfig(endpoint=f"onnx:{path}", image_size=8, channels=3)
    endpoint = Onnx(config, SOFT)
    assert endpoint.name == f"onnx:{path}"
    assert (endpoint.image_size, endpoint.channels, endpoint.num_classes) == (8, 3, 5)
    endpoint.close()


@pytest.mark.parametrize(
    ("options", "contract", "said"),
    [
        ({"image_size": 32}, SOFT, "image_size is 8, but the configuration has 32"),
        ({"channels": 1}, SOFT, "channels is 3, but the configuration has 1"),
        ({}, Contract(10, False), "num_classes is 5, but the configuration has 10"),
        ({"layout": "NHWC"}, SOFT, "its images must be as wide as they are high"),
        ({"mean": (0.5,), "std": (0.5,)}, SOFT, "one value for each of 3 channels"),
        ({"mean": (0.5,) * 3}, SOFT, r"and std \(\); each must have one"),
        ({"std": (0.5,) * 3}, SOFT, r"mean is \(\) and std"),
        ({"mean": (0.5,) * 3, "std": (1.0,) * 3, "pixels": "-1..1"}, SOFT, "takes -1..1"),
    ],
)
def test_a_contradiction_of_the_configuration_is_refused(path, options, contract, said):
    write(path)
    with pytest.raises(UserError, match=said) as raised:
        load(path, contract, **options)
    assert "victim" in str(raised.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pixels": "0..1"}, "'0..1', but .* takes integers"),
        ({"pixels": "-1..1"}, "'-1..1', but .* takes integers"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, "takes integers: leave them out"),
    ],
)
def test_integers_have_no_other_range(path, options, said):
    write(path, dtype=np.uint8)
    with pytest.raises(UserError, match=said):
        load(path, **options)


def node(num_inputs, num_outputs):
    def value(name, kind=TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, kind, ["N", *NCHW])

    inputs = [value(f"in{i}") for i in range(num_inputs)]
    outputs = [value(f"out{i}") for i in range(num_outputs)]
    nodes = [helper.make_node("Sum", [i.name for i in inputs], [o.name]) for o in outputs]
    return nodes, inputs, outputs


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        (2, 1, "has 2 inputs, in0, in1; it must have one"),
        (1, 2, "has 2 outputs, out0, out1; it must have one"),
    ],
)
def test_two_inputs_or_outputs_are_named(path, inputs, outputs, said):
    save(path, *node(inputs, outputs))
    with pytest.raises(UserError, match=said):
        load(path)


@pytest.mark.parametrize(
    ("kind", "shape", "said"),
    [
        (TensorProto.INT8, ["N", *NCHW], r"input images is tensor\(int8\); it must be one of"),
        (TensorProto.STRING, ["N", *NCHW], r"input images is tensor\(string\)"),
        (TensorProto.FLOAT, ["N", 192], r"\['N', 192\]; it must be \[N, channels, H, W\] or"),
        (TensorProto.FLOAT, ["N", 3, 8, 9], "as wide as they are high"),
    ],
)
def test_other_inputs_are_refused(path, kind, shape, said):
    images = helper.make_tensor_value_info("images", kind, shape)
    answers = helper.make_tensor_value_info("answers", kind, None)
    save(path, [helper.make_node("Identity", ["images"], ["answers"])], [images], [answers])
    with pytest.raises(UserError, match=said):
        load(path)


def test_other_outputs_are_refused(path):
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", *NCHW])
    answers = helper.make_tensor_value_info("answers", TensorProto.STRING, None)
    cast = helper.make_node("Cast", ["images"], ["answers"], to=TensorProto.STRING)
    save(path, [cast], [images], [answers])
    with pytest.raises(UserError, match=r"output answers is tensor\(string\); it must be one of"):
        load(path)


def test_answers_must_be_one_for_each_image(path):
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", *NCHW])
    answers = helper.make_tensor_value_info("answers", TensorProto.FLOAT, None)
    shape = onnx.numpy_helper.from_array(np.array([-1, NUM_CLASSES]), "shape")
    nodes = [
        helper.make_node("Constant", [], ["shape"], value=shape),
        helper.make_node("Reshape", ["images", "shape"], ["answers"]),
    ]
    save(path, nodes, [images], [answers])
    with pytest.raises(UserError, match=r"20 images with \[768, 5\]: its first dimension"):
        ask(path)


def test_what_fails_while_it_answers_is_told(path):
    write(path)
    with pytest.raises(UserError, match="fails: INVALID_ARGUMENT : Got invalid dimensions"):
        ask(path, IMAGES[:, :4, :4])


def test_answers_that_break_the_contract_are_refused(path):
    write(path, scale=np.nan)
    with pytest.raises(UserError, match=rf"onnx:{path} answered .* must be finite"):
        ask(path)
    write(path, scale=np.nan, ends="logits")
    with pytest.raises(UserError, match="must be finite"):
        ask(path, logits=True)


def test_what_is_no_file_to_use_is_refused(path, tmp_path):
    with pytest.raises(UserError, match=rf"{path} cannot be read: No such file"):
        load(path)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load(tmp_path)
    for content in (b"", b"junk", b"\x80\x02}q\x00."):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no ONNX file that can be used: "):
            load(path)
    write(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="is no ONNX file that can be used: "):
        load(path)


def test_an_opset_that_is_not_known_is_told(path):
    write(path, opset=999)
    with pytest.raises(
        UserError, match=r"is no ONNX file that can be used: FAIL : ONNX Runtime only .*pset 999 is"
    ):
        load(path)


def test_without_onnx_runtime_it_says_how_to_get_it(path, monkeypatch):
    write(path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'disguide_jax\[onnx\]'"):
        load(path)


def test_the_fingerprint_is_that_of_the_bytes(path):
    write(path)
    found = fingerprint(path)
    assert found == hashlib.sha256(path.read_bytes()).hexdigest()
    write(path, scale=2.0)
    assert fingerprint(path) != found


def test_the_fingerprint_knows_weights_in_files_beside(path):
    """PyTorch's exporter puts them there."""
    beside = {"save_as_external_data": True, "location": "weights.data", "size_threshold": 0}
    write(path, **beside)
    np.testing.assert_allclose(ask(path), expected(IMAGES / 255), atol=1e-6)
    found, content = fingerprint(path), path.read_bytes()
    (path.parent / "weights.data").unlink()
    with pytest.raises(UserError, match=r"weights.data cannot be read: No such file"):
        load(path)
    write(path, scale=2.0, **beside)
    assert path.read_bytes() == content
    assert fingerprint(path) != found
