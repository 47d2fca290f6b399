"""Weights are read from every file that PyTorch wrote, and nothing in it is run.

The files are made by `torch_files`; torch itself read them alike when the tests were written.
"""

import argparse
import collections
import datetime
import decimal
import enum
import functools
import pathlib
import pickle
import pickletools
import types

import ml_dtypes
import numpy as np
import pytest
import torch_files
from test_convert import assert_same_bits
from torch_files import Made, Named, Storage, legacy, tensor, tensors, zipped

from disguide_jax.errors import UserError
from disguide_jax.files import inert, weights

FORMATS = {"zip": zipped, "legacy": legacy}
ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "conv.bias": np.arange(2, dtype=np.float32),
    "fc.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
}


@pytest.fixture
def read(tmp_path):
    """Reads what a file with some content would give."""

    def load(content: bytes) -> weights.Weights:
        (tmp_path / "w.pt").write_bytes(content)
        return weights.load(tmp_path / "w.pt")

    return load


def refusal(read, content: bytes) -> str:
    with pytest.raises(UserError) as caught:
        read(content)
    return str(caught.value)


# --- Values beside the weights ----------------------------------------------


class Phase(enum.Enum):
    TRAIN = 1


class Slots:
    __slots__ = ("a", "b")


class Outer:
    class Inner:
        def method(self):
            """Pickled by getattr."""


class Attributes(dict):
    """A dict with a state, as of many a configuration."""


def slots() -> Slots:
    made = Slots()
    made.a, made.b = 1, Slots
    return made


BESIDE = {
    "a NumPy scalar": np.float64(0.9),
    "NumPy arrays": [np.zeros((2, 3)), np.array(["a"]), np.array([None]), np.zeros(2, "f4,i4")],
    "states of random numbers": [np.random.get_state(), np.random.default_rng(0)],
    "arguments": argparse.Namespace(lr=0.1, out=pathlib.Path("out")),
    "times": [datetime.datetime(2020, 1, 1), datetime.timedelta(1), datetime.UTC],
    "an enumeration": Phase.TRAIN,
    "bytes": [b"\x00\xff", bytearray(b"\x80")],
    "sets": [{1, 2}, frozenset("ab")],
    "numbers": [1j, 2**80, decimal.Decimal("0.1"), range(3), slice(2), ...],
    "a partial function": functools.partial(slots, 1, a=2),
    "a function and a class": [slots, Slots, len],
    "a method of a nested class": Outer.Inner().method,
    "slots": slots(),
    "containers": [
        collections.defaultdict(list, a=[1]),
        collections.Counter("aab"),
        collections.deque([1]),
        Attributes(a=1),
        types.SimpleNamespace(a=1),
    ],
    "sizes, devices, types": [
        Made("torch.Size", (1, 2)),
        Made("torch.device", "cuda", 0),
        Named("torch", "float16"),
        Made("torch.serialization._get_layout", "torch.strided"),
    ],
    "packages that are not installed": Made(
        "omegaconf.dictconfig.DictConfig", state={"_content": {"lr": Made("x.Y", entries={1: 2})}}
    ),
    "an optimiser": Made(
        "torch.optim.sgd.SGD",
        state={"state": {0: {"exp_avg": tensor(np.ones((99, 99)))}}, "param_groups": []},
    ),
    "other tensors": [
        Made("torch._utils._rebuild_sparse_tensor", Named("torch", "strided"), ()),
        Made("torch._utils._rebuild_qtensor", Storage(np.zeros(3, np.uint8), "QInt8Storage")),
        Made("torch._utils._rebuild_meta_tensor_no_storage", Named("torch", "float32"), (2,)),
    ],
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("value", BESIDE)
def test_weights_are_read_whatever_lies_beside_them(value, file_format, protocol, read):
    checkpoint = {"value": BESIDE[value], "net": tensors(ARRAYS), "epoch": 3}
    assert_same_bits(read(FORMATS[file_format](checkpoint, protocol)).state_dict, ARRAYS)


def test_a_file_without_weights_says_what_it_holds(read):
    checkpoint = {"epoch": 3, "args": argparse.Namespace(), "config": Made("omegaconf.DictConfig")}
    message = refusal(read, zipped(checkpoint))
    assert "the keys ['epoch', 'args', 'config']" in message
    assert "(int, argparse.Namespace, omegaconf.DictConfig)" in message
    assert "a list" in refusal(read, zipped([3]))
    optimiser = {"state": {0: {"exp_avg": tensor(np.ones(3))}}, "param_groups": [{}]}
    assert "the state of an optimiser" in refusal(read, zipped(optimiser))


# --- Which of several -------------------------------------------------------


def other(arrays: dict) -> dict:
    return tensors({name: array + 1 for name, array in arrays.items()})


def test_the_plain_network_is_taken_before_its_copies_and_said(read):
    for checkpoint in (
        {"model_ema": other(ARRAYS), "model": tensors(ARRAYS)},
        {"ema": {"state_dict": other(ARRAYS)}, "state_dict": tensors(ARRAYS)},
        {"teacher": other(ARRAYS), "my_network": tensors(ARRAYS)},
        {"discriminator": other(ARRAYS), "net": tensors(ARRAYS)},
    ):
        found = read(zipped(checkpoint))
        assert_same_bits(found.state_dict, ARRAYS)
        (copy, plain) = checkpoint
        assert f"read from {plain}; not from {copy}" in found.notes[0]


def test_weights_are_found_wherever_a_checkpoint_keeps_them(read):
    network = np.random.default_rng(0).random((300, 400), np.float32)
    state_dict = {"conv.weight": network, "fc.weight": network}
    counters = {"rng": tensor(np.zeros(5056, np.uint8)), "class_weights": tensor(np.ones(10))}
    for checkpoint in (
        {"ema_state_dict": tensors(state_dict), "optimizer": BESIDE["an optimiser"]} | counters,
        [tensors(state_dict), {"state": {}, "param_groups": []}, 3],
        {"trainer": Made("mine.Trainer", state={"best": {"weights": tensors(state_dict)}})},
        Made("mine.Easy", entries={"params": Made("mine.Easy", entries=tensors(state_dict))}),
        Made("mine.Slots", state=(None, {"net": tensors(state_dict)})),
    ):
        assert_same_bits(read(zipped(checkpoint)).state_dict, state_dict)


def module(name: str, parameters: dict | None = None, modules: dict | None = None) -> Made:
    """A module that was saved whole."""
    kept = {"_parameters": parameters or {}, "_buffers": {}, "_modules": modules or {}}
    return Made(f"mine.{name}", state={"training": True, **kept})


def test_a_network_that_was_saved_whole_gives_its_weights(read):
    made = tensors(ARRAYS)
    parameter = Made("torch._utils._rebuild_parameter", made["conv.weight"], True, {})
    old = Made("torch.nn.parameter.Parameter", made["fc.weight"])
    conv = module("Conv", {"weight": parameter, "bias": made["conv.bias"]})
    net = module("Net", {}, {"conv": conv, "fc": module("Linear", {"weight": old, "bias": None})})
    for content in (net, {"model": module("DataParallel", {}, {"module": net}), "epoch": 1}):
        for written in (zipped(content), legacy(content, 4)):
            found = read(written)
            assert_same_bits(found.state_dict, ARRAYS)
            assert "nothing was run" in found.notes[0]


def test_torchscript_gives_its_weights(read):
    made = tensors(ARRAYS)
    conv = {"training": True, "weight": made["conv.weight"], "bias": made["conv.bias"]}
    parts = {
        "conv": Made("__torch__.torch.nn.modules.conv.Conv2d", state=conv),
        "fc": Made("__torch__.torch.nn.modules.linear.Linear", state={"weight": made["fc.weight"]}),
    }
    written = zipped(Made("__torch__.mine.Net", state={"training": True, **parts}))
    assert_same_bits(read(written).state_dict, ARRAYS)


# --- Every version of PyTorch -----------------------------------------------


def test_files_of_pytorch_0_2_and_of_python_2_are_read(read):
    made = {name: tensor(array, "_rebuild_tensor") for name, array in ARRAYS.items()}
    assert_same_bits(read(legacy(made)).state_dict, ARRAYS)
    pairs = [[name, value] for name, value in made.items()]
    assert_same_bits(read(legacy(Made("collections.OrderedDict", pairs))).state_dict, ARRAYS)


def test_files_of_pytorch_0_1_are_read(read):
    arrays = ARRAYS | {"fc.weight": ARRAYS["fc.weight"].T}
    written = torch_files.tarred({n: np.ascontiguousarray(a) for n, a in arrays.items()})
    assert_same_bits(read(written).state_dict, arrays)
    assert "not one that torch.save has written" in refusal(read, written[:1024])  # sys_info
    assert "unexpected end" in refusal(read, written[:2000])


def test_a_part_of_a_storage_is_read(read):
    storage = Storage(np.arange(9, dtype=np.float32), part=("1", 2, 4))
    made = Made("torch._utils._rebuild_tensor", storage, 1, (2,), (1,))
    expected = {"a.weight": np.array([3, 4], np.float32)}
    assert_same_bits(read(legacy({"a.weight": made})).state_dict, expected)


@pytest.mark.parametrize("dtype", torch_files.KINDS)
@pytest.mark.parametrize("order", ["little", "big"])
def test_all_types_in_both_orders_of_bytes_are_read(dtype, order, read):
    array = np.array([[1.5, 0, 3]]).astype(getattr(ml_dtypes, dtype, dtype))
    if array.dtype.kind == "c":
        array = array * (1 + 2j)
    made = tensor(array.astype(array.dtype))
    if order == "big":
        storage = made.how[1][0]
        width = array.itemsize // (2 if array.dtype.kind == "c" else 1)
        storage.content = np.frombuffer(storage.content, f"u{width}").byteswap().tobytes()
    assert_same_bits(read(zipped({"a.weight": made}, order=order)).state_dict, {"a.weight": array})


def test_untyped_storages_are_read(read):
    for dtype in (np.dtype(np.uint16), np.dtype(ml_dtypes.float8_e5m2)):
        array = np.arange(6).reshape(2, 3).astype(dtype)
        storage = Storage(array, "UntypedStorage")
        made = Made(
            "torch._utils._rebuild_tensor_v3",
            *(storage, 0, (2, 3), (3, 1), False, {}, Named("torch", dtype.name)),
        )
        for written in (zipped({"a.weight": made}), legacy({"a.weight": made})):
            assert_same_bits(read(written).state_dict, {"a.weight": array})


def test_tensors_within_other_classes_and_arrays_are_read(read):
    made = tensor(np.ones((2, 3), np.float32))
    how, args, *_ = made.how
    cases = (
        Made("torch._utils._rebuild_parameter_with_state", made, True, {}, {"tag": 1}),
        Made("torch._tensor._rebuild_from_type_v2", how, Named("torch", "Tensor"), args, {"a": 1}),
        np.ones((2, 3), np.float32),
        np.asfortranarray(np.ones((2, 3), np.float32)),
        np.ones((2, 3), ">f4"),
    )
    for case in cases:
        for protocol in (2, 4):
            found = read(zipped({"a.weight": case}, protocol)).state_dict
            assert_same_bits(found, {"a.weight": np.ones((2, 3), np.float32)})


def test_weights_that_are_no_plain_tensors_are_named(read):
    quantised = Made("torch._utils._rebuild_qtensor", Storage(np.zeros(3, np.uint8)), 0, (3,), (1,))
    lazily = tensor(ARRAYS["fc.weight"])
    lazily.how = (lazily.how[0], (*lazily.how[1], {"neg": True}), *lazily.how[2:])
    for made in (quantised, lazily):
        message = refusal(read, zipped({"state_dict": tensors(ARRAYS) | {"b.weight": made}}))
        assert "b.weight is no plain tensor" in message


# --- Nothing is run ---------------------------------------------------------


def leave(path: str, *_) -> dict:
    """A harmless function that shows that it was called."""
    pathlib.Path(path).touch()
    return collections.OrderedDict()


class Payload:
    """Is unpickled in one of the ways in which a pickle can call something."""

    def __init__(self, *how):
        self.how = how

    def __reduce__(self):
        return self.how


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_a_pickle_calls_is_not_called(file_format, protocol, read, tmp_path):
    evidence = tmp_path / "executed"
    payloads = (
        Payload(leave, (str(evidence),)),
        Payload(
            collections.OrderedDict, (), None, None, iter([("a", Payload(leave, (evidence,)))])
        ),
        Payload(functools.partial(leave, str(evidence)), ()),
    )
    for payload in payloads:
        pickle.loads(pickle.dumps(payload, protocol))
        assert evidence.exists()  # so it is a real one
        evidence.unlink()
        checkpoint = {"model": tensors(ARRAYS), "payload": payload}
        assert_same_bits(read(FORMATS[file_format](checkpoint, protocol)).state_dict, ARRAYS)
        assert not evidence.exists()


@pytest.mark.parametrize("path", [*sorted(inert.RUNNERS), "torch.serialization.os"])
def test_what_was_made_to_run_something_is_refused_beside_good_weights(path, read):
    path = path if "." in path else f"{path}.run"
    checkpoint = {"state_dict": tensors(ARRAYS), "x": Made(path, "touch executed")}
    for written in (zipped(checkpoint), legacy(checkpoint)):
        assert f"asks for {path}, which is refused" in refusal(read, written)
    name = f"__builtin__.{path.removeprefix('builtins.')}"  # of Python 2
    if path.startswith("builtins."):
        checkpoint["x"] = Made(name)
        assert f"asks for {path}, which is refused" in refusal(read, zipped(checkpoint))


def contents(written: bytes) -> list[str]:
    return [opcode.name for opcode, _, _ in pickletools.genops(written)]


def test_a_pickle_cannot_change_what_it_is_given(read):
    classes = inert.Object, inert.Attribute, collections.OrderedDict, dict
    before = [dict(vars(each)) for each in classes]
    text = b"X\x07\x00\x00\x00changed\x88"
    dotted = b"X\x08\x00\x00\x00__dict__"
    globals_ = (
        b"cmine\nA\n",  # a class
        b"cmine\nA\n)\x81",  # what it makes
        b"cmine\nA\n)R",
        b"c__builtin__\ngetattr\n",
        b"c__builtin__\ngetattr\ncmine\nA\n" + dotted + b"\x86R",  # its attribute
        b"c__builtin__\ngetattr\ncmine\nA\n)R" + dotted + b"\x86R",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n)R",
        b"}",
    )
    changes = (
        b"}" + text + b"sb",  # BUILD, of __dict__
        b"N}" + text + b"s\x86b",  # BUILD, of attributes
        text + b"s",  # SETITEM
        b"]" + text + b"\x86a",  # APPEND
        b"(" + text + b"\x90",  # ADDITEMS
    )
    for found in globals_:
        for change in changes:
            written = b"\x80\x04" + found + change + b"."
            assert contents(written)[-1] == "STOP"
            refusal(read, torch_files.zip_of(written))
    assert [dict(vars(each)) for each in classes] == before


def test_extensions_of_this_process_are_not_looked_up(read):
    assert "needs extensions" in refusal(read, torch_files.zip_of(b"\x80\x02\x82\x01."))


NONE, TUPLE1, TUPLE, MARK, POP, DUP, STOP = b"N", b"\x85", b"t", b"(", b"0", b"2", b"."
DEEP = {  # tuples in tuples, made in several ways; hashing a million overflows Python's stack
    "one by one": NONE + TUPLE1 * 12_000,
    "by marks": MARK * 12_000 + TUPLE * 12_000,
    "by way of numbers": NONE + (TUPLE1 + b"q\x01" + POP + b"h\x01") * 12_000,
    "twice": NONE + (DUP + b"\x86") * 12_000,
    "by way of what is kept elsewhere": NONE
    + (b"q\x01" + POP + MARK + b"X\x06\x00\x00\x00moduleh\x01NNtQ" + TUPLE1 * 6_000) * 2,
}


@pytest.mark.parametrize("case", DEEP)
def test_tuples_that_are_too_deep_to_hash_are_refused(case, read):
    written = b"\x80\x02}" + DEEP[case] + NONE + b"s" + STOP
    assert "12,00" in refusal(read, torch_files.zip_of(written))


def test_as_many_tuples_as_there_are_may_lie_beside_the_weights(read):
    history = [(epoch, (0.5, ("a", {1: (2,)}))) for epoch in range(40_000)]
    checkpoint = {"history": history, "net": tensors(ARRAYS)}
    for protocol in (2, 4):
        assert_same_bits(read(zipped(checkpoint, protocol)).state_dict, ARRAYS)


def test_values_that_hold_themselves_are_read(read):
    loop = []
    loop.append(loop)
    shared = [[]]
    for _ in range(60):  # 2^60 paths
        shared = [shared, shared]
    checkpoint = {"loop": loop, "shared": shared, "net": tensors(ARRAYS)}
    assert_same_bits(read(zipped(checkpoint)).state_dict, ARRAYS)
