"""Weights across files, PyTorch's names and variables; what is damaged or hostile is refused.

`data/convert/` holds one odd checkpoint in both formats of `torch.save`, and says how it was
made.
"""

import collections
import functools
import io
import json
import os
import pathlib
import pickle
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT, load_script

from disguide_jax import models
from disguide_jax.core.types import Variables
from disguide_jax.errors import UserError, exit_status
from disguide_jax.files import architectures, torch_pickle, weights

ZIP = ROOT / "tests/data/convert/checkpoint.pt"
LEGACY = ROOT / "tests/data/convert/checkpoint_legacy.pt"
LEGACY_HEAD = pickle.dumps(torch_pickle.LEGACY_MAGIC, 2) + pickle.dumps(1001, 2)


def assert_same_bits(left: dict, right: dict):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert left[name].shape == right[name].shape, name
        assert left[name].tobytes() == right[name].tobytes(), name


def random_bits(shape: tuple[int, ...], dtype=np.float32, seed: int = 0) -> np.ndarray:
    """Any bits, NaNs with payloads included."""
    rng = np.random.default_rng([seed, *shape])
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(rng.bytes(size), dtype).reshape(shape)


@functools.cache
def template_of(net) -> Variables:
    return jax.eval_shape(lambda: net.init(jax.random.key(0)))


def random_weights(net) -> weights.StateDict:
    rng = np.random.default_rng(0)
    return weights.to_state_dict(
        jax.tree.map(lambda x: rng.random(x.shape, np.float32), template_of(net))
    )


LENET = models.make_classifier("lenet5_half", num_classes=10, size=32, channels=1)
RESNET = models.make_classifier("resnet18_8x", width=2, num_classes=3, size=32, channels=3)
NETWORKS = {
    "lenet": LENET,
    "resnet": RESNET,
    "generator": models.make_generator(width=2, latent_dim=5, size=32, channels=3),
}


# --- Names and layouts ------------------------------------------------------


def test_layouts_are_pytorchs():
    conv, linear = np.arange(120).reshape(2, 3, 4, 5), np.arange(6).reshape(2, 3)
    per_channel = {kind: np.full(2, i) for i, kind in enumerate(["weight", "bias"])}
    running = {kind: np.full(2, i) for i, kind in enumerate(["running_mean", "running_var"])}
    variables = weights.to_variables(
        {"a.0.weight": conv, "b.weight": linear}
        | {f"c.{kind}": array for kind, array in (per_channel | running).items()}
        | {"c.num_batches_tracked": np.array(7)}
    )
    assert variables.params.keys() == {"a.0", "b", "c"}
    assert variables.params["a.0"]["kernel"].shape == (4, 5, 3, 2)
    assert variables.params["a.0"]["kernel"][3, 1, 2, 0] == conv[0, 2, 3, 1]
    assert variables.params["b"]["kernel"][2, 1] == linear[1, 2]
    assert variables.params["c"]["scale"] is per_channel["weight"]
    assert variables.params["c"]["bias"] is per_channel["bias"]
    assert variables.batch_stats == {
        "c": {"mean": running["running_mean"], "var": running["running_var"]}
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_export_then_import_gives_the_same_variables_bit_for_bit(name, tmp_path):
    template = template_of(NETWORKS[name])
    variables = jax.tree.map(lambda x: random_bits(x.shape, x.dtype), template)
    weights.save_state_dict(tmp_path / "w", weights.to_state_dict(variables))
    again = weights.to_variables(weights.load_state_dict(tmp_path / "w"))
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    for left, right in zip(jax.tree.leaves(again), jax.tree.leaves(variables), strict=True):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert left.tobytes() == right.tobytes()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_import_then_export_gives_the_same_state_dict_bit_for_bit(dtype, tmp_path):
    shapes = {"a.weight": (2, 3, 4, 5), "b.0.weight": (3, 2), "b.1.weight": (3,)}
    shapes |= {"b.1.bias": (3,), "b.1.running_mean": (3,), "b.1.running_var": (3,)}
    state_dict = {name: random_bits(shape, dtype) for name, shape in shapes.items()}
    exported = weights.to_state_dict(weights.to_variables(state_dict))
    assert_same_bits(exported, state_dict)
    weights.save_state_dict(tmp_path / "w", exported)
    assert_same_bits(weights.load_state_dict(tmp_path / "w"), state_dict)


def test_import_names_a_tensor_that_no_layer_has():
    with pytest.raises(UserError, match=r"encoder\.weight_g \[3, 1\]"):
        weights.to_variables({"encoder.weight_g": np.zeros((3, 1))})


# --- Architectures ----------------------------------------------------------


@pytest.mark.parametrize("model", models.CLASSIFIERS)
def test_every_classifier_is_recognised_by_its_weights(model):
    width = {"lenet5": 6, "lenet5_half": 3}.get(model, 5)
    size = 32 if model.startswith("lenet") else 0  # the others take all
    expected = architectures.Architecture(model, width, channels=2, num_classes=7, size=size)
    template = template_of(models.make_classifier(**expected._replace(size=32)._asdict()))
    state_dict = weights.to_state_dict(jax.tree.map(lambda x: np.zeros(x.shape), template))
    assert architectures.taken_as(architectures.recognise(state_dict, "w"), model) == expected


def test_other_networks_are_not_recognised_and_shown():
    state_dict = random_weights(RESNET)
    cut = {name: state_dict[name] for name in state_dict if not name.startswith("layer2.1")}
    with pytest.raises(UserError, match=r"(?s)w\.pt: .*Found 2, 1, 2, 2 blocks"):
        architectures.recognise(cut, "w.pt")
    vgg = {f"features.{i}.weight": np.zeros((4, 3, 3, 3)) for i in range(10)}
    with pytest.raises(UserError) as caught:
        architectures.recognise(vgg, "w.pt")
    assert "resnet18_8x" in str(caught.value)
    assert "features.7.weight [4, 3, 3, 3]\n  and 2 more" in str(caught.value)
    for name in ("conv1.weight", "linear.weight"):
        with pytest.raises(UserError, match="not the weights"):
            architectures.recognise(state_dict | {name: np.zeros(3)}, "w.pt")
    wide = random_weights(LENET) | {"conv1.weight": np.zeros((32, 1, 5, 5))}
    with pytest.raises(UserError, match=r"conv1\.weight \[32, 1, 5, 5\]"):
        architectures.recognise(wide, "w.pt")


# --- Fitting ----------------------------------------------------------------


def test_fit_gives_the_templates_structure_and_dtypes():
    state_dict = {name: array.astype(np.float64) for name, array in random_weights(RESNET).items()}
    state_dict["bn1.num_batches_tracked"] = np.array(3)
    template = template_of(RESNET)
    fitted = weights.fit(state_dict, template, "w")
    assert jax.tree.structure(fitted) == jax.tree.structure(template)
    for leaf, wanted in zip(jax.tree.leaves(fitted), jax.tree.leaves(template), strict=True):
        assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
    stem = state_dict["conv1.weight"].astype(np.float32)
    assert fitted.params["conv1"]["kernel"][2, 1, 0, 1] == stem[1, 0, 2, 1]


def test_fit_names_everything_that_does_not_fit():
    state_dict = random_weights(LENET)
    del state_dict["fc1.bias"]
    state_dict["conv1.weight"] = np.zeros((3, 3, 5, 5), np.float32)
    state_dict["conv2.bias"] = np.full(8, np.nan, np.float32)
    state_dict["conv3.bias"] = np.full(60, 1e300)
    state_dict["extra.weight"] = np.zeros(2, np.float32)
    with pytest.raises(UserError) as caught:
        weights.fit(state_dict, template_of(LENET), "w.pt")
    message = str(caught.value)
    assert "w.pt" in message
    assert "fc1.bias [42] is missing" in message
    assert "conv1.weight is [3, 3, 5, 5] instead of [3, 1, 5, 5]" in message
    assert "conv2.bias has values that are not finite" in message
    assert "conv3.bias has values that are not finite float32" in message
    assert "extra.weight [2] is unexpected" in message
    assert message.count("\n") == 5


def test_fit_lists_a_few_of_many_problems_and_counts_the_rest():
    with pytest.raises(UserError) as caught:
        weights.fit({}, template_of(RESNET), "w.pt")
    num_tensors = len(jax.tree.leaves(template_of(RESNET)))
    assert f"and {num_tensors - 8} more" in str(caught.value)
    assert str(caught.value).count("is missing") == 8


# --- safetensors ------------------------------------------------------------


def test_saving_ignores_how_arrays_lie_in_memory(tmp_path):
    flat = np.arange(24, dtype=np.float32)
    arrays = {"a": flat.reshape(2, 3, 4).T, "b": flat[3::5], "c": flat[5:6].reshape(())}
    weights.save_state_dict(tmp_path / "new" / "w", arrays)
    assert_same_bits(weights.load_state_dict(tmp_path / "new" / "w"), arrays)


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    weights.save_state_dict(path, {"a": np.zeros(2)})
    before = path.read_bytes()

    def disk_full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(UserError, match=r"w\.safetensors: cannot be written: No space left"):
        weights.save_state_dict(path, {"a": np.ones(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_equal_content_makes_equal_files(tmp_path):
    state_dict = {"b": np.ones((2, 3), np.float32), "a": np.zeros(1, np.float32)}
    metadata = {name: name for name in "abcdefgh"}
    written = set()
    for _ in range(8):
        weights.save_state_dict(tmp_path / "w", state_dict, metadata)
        written.add((tmp_path / "w").read_bytes())
    assert len(written) == 1
    assert weights.load_metadata(tmp_path / "w") == metadata
    assert_same_bits(weights.load_state_dict(tmp_path / "w"), state_dict)


def test_metadata_comes_back_and_other_formats_have_none(tmp_path):
    weights.save_state_dict(tmp_path / "w", {"a": np.zeros(2)}, {"model": "lenet5"})
    assert weights.load_metadata(tmp_path / "w") == {"model": "lenet5"}
    weights.save_state_dict(tmp_path / "w", {"a": np.zeros(2)})
    assert weights.load_metadata(tmp_path / "w") == {}
    assert weights.load_metadata(ZIP) == weights.load_metadata(LEGACY) == {}
    with pytest.raises(UserError, match="absent: cannot be read"):
        weights.load_metadata(tmp_path / "absent")


# --- PyTorch's files --------------------------------------------------------


@pytest.mark.parametrize("path", [ZIP, LEGACY], ids=["zip", "legacy"])
def test_odd_tensors_of_a_nested_checkpoint_are_read_bit_for_bit(path):
    flat = np.arange(24, dtype=np.float32)
    expected = {
        "contiguous": flat.reshape(2, 3, 4),
        "transposed": flat.reshape(2, 3, 4).transpose(2, 0, 1),
        "strided": flat[3::5],
        "expanded": np.full((3, 2), flat[7]),
        "scalar": flat[5],
        "empty": np.empty((0, 3), np.float32),
        "parameter": np.arange(6, dtype=np.float32).reshape(3, 2),
        "bfloat16": np.arange(3).astype(ml_dtypes.bfloat16),
        "bool": np.array([False, True, True]),
    }
    for dtype in ("float64", "float16", "int64", "int32", "int16", "int8", "uint8"):
        expected[dtype] = np.arange(3).astype(dtype)
    assert_same_bits(weights.load_state_dict(path), expected)


def test_other_spellings_of_resnets_and_wrappers_are_understood(tmp_path):
    state_dict = random_weights(RESNET)
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        renamed = {
            prefix + name.replace("shortcut", "downsample").replace("linear", "fc"): array
            for name, array in state_dict.items()
        }
        weights.save_state_dict(tmp_path / "w", renamed)
        assert_same_bits(weights.load_state_dict(tmp_path / "w"), state_dict)


def test_recorded_networks_are_recognised_and_fit(shared):
    expected = {
        "golden/resnet18.pt": ("resnet18_8x", 4, 3, 10, 0),
        "golden/resnet34.pt": ("resnet34_8x", 4, 3, 10, 0),
        "golden/lenet5.pt": ("lenet5", 6, 1, 10, 32),
        "golden/lenet5_half.pt": ("lenet5_half", 3, 1, 10, 32),
        "victims/cifar10-resnet34_w16.pt": ("resnet34_8x", 16, 3, 10, 0),
    }
    for file, architecture in expected.items():
        state_dict = weights.load_state_dict(shared / file)
        found = architectures.recognise(state_dict, file)
        assert found == architecture
        template = template_of(models.make_classifier(**found._replace(size=32)._asdict()))
        exported = weights.to_state_dict(weights.fit(state_dict, template, file))
        kept = {n: a for n, a in state_dict.items() if not n.endswith("num_batches_tracked")}
        assert_same_bits(exported, kept)


def test_the_legacy_format_holds_the_same_bits_as_the_zip_format(shared):
    assert_same_bits(
        weights.load_state_dict(shared / "golden" / "resnet18_legacy.pt"),
        weights.load_state_dict(shared / "golden" / "resnet18.pt"),
    )


# --- Hostile files ----------------------------------------------------------


class Payload:
    """Unpickling it runs a command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def zip_with(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return buffer.getvalue()


FORMATS = {
    "zip": zip_with,
    "legacy": lambda content: LEGACY_HEAD + pickle.dumps({}) + content + pickle.dumps([]),
    "legacy system information": lambda content: LEGACY_HEAD + content,
    "legacy first": lambda content: content,
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_pickle_that_runs_a_command_is_refused_by_name_and_not_executed(
    file_format, protocol, tmp_path
):
    evidence = tmp_path / "executed"
    content = pickle.dumps({"state_dict": Payload(f"touch '{evidence}'")}, protocol)
    pickle.loads(content)
    assert evidence.exists()  # so it is a real one
    evidence.unlink()
    (tmp_path / "w.pt").write_bytes(FORMATS[file_format](content))
    with pytest.raises(UserError, match=r"w\.pt: .*asks for \w+\.system, which is refused"):
        weights.load_state_dict(tmp_path / "w.pt")
    assert not evidence.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "builtins getattr",
        "torch.storage _load_from_bytes",
        "torch load",
        "collections namedtuple",
        "numpy load",
        "disguide_jax.files.weights load_state_dict",
        "torch._utils _rebuild_tensor_v2.__globals__",
        "mymodels ResNet",
    ],
)
def test_every_other_global_is_refused_by_name(name, tmp_path):
    # Protocol 4 looks dotted names up attribute by attribute.
    module, attribute = name.split()
    stacked = b"".join(b"\x8c" + bytes([len(x)]) + x.encode() for x in (module, attribute))
    for content in (
        b"\x80\x02c%s\n%s\n." % (module.encode(), attribute.encode()),
        b"\x80\x04" + stacked + b"\x93.",
    ):
        (tmp_path / "w.pt").write_bytes(zip_with(content))
        with pytest.raises(UserError, match=f"asks for {module}.{attribute}, which is refused"):
            weights.load_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["collections OrderedDict", "collections Counter"])
def test_a_pickle_cannot_change_the_classes_that_it_may_use(name, tmp_path):
    # BUILD with (None, {"changed": True}) sets attributes of what GLOBAL has found.
    module, attribute = name.encode().split()
    content = b"\x80\x02c%s\n%s\nN}X\x07\x00\x00\x00changed\x88s\x86b." % (module, attribute)
    (tmp_path / "w.pt").write_bytes(zip_with(content))
    with pytest.raises(UserError):
        weights.load_state_dict(tmp_path / "w.pt")
    assert not hasattr(getattr(collections, attribute.decode()), "changed")


def test_a_damaged_pickle_index_does_not_fill_the_memory(tmp_path):
    # An empty dict, stored as object number 2^24 - 1; the last bits would make it 64 GB.
    (tmp_path / "w.pt").write_bytes(zip_with(b"\x80\x02}r\xff\xff\xff\x00."))
    with pytest.raises(UserError, match="16777215"):
        weights.load_state_dict(tmp_path / "w.pt")


# --- Damaged files ----------------------------------------------------------

STRIDED = b"K\x03K\x05\x85"  # in both pickles: offset 3, shape (5,), of a storage of 24
FLAT = np.arange(24, dtype=np.float32).tobytes()  # in both files: that storage
RECORD = "checkpoint/data/0"  # the same in the zip file
PICKLE = "checkpoint/data.pkl"
SAFETENSORS = safetensors.numpy.save({"a": np.zeros((2, 3), np.float32)}, {"model": "lenet5"})


def rewritten(name: str, content: bytes | None) -> bytes:
    """The zip checkpoint with another, or without a, member; its checksums are right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(ZIP) as old, zipfile.ZipFile(buffer, "w") as new:
        for each in old.namelist():
            new_content = content if each == name else old.read(each)
            if new_content is not None:
                new.writestr(each, new_content)
    return buffer.getvalue()


def zip_pickle() -> bytes:
    with zipfile.ZipFile(ZIP) as archive:
        return archive.read(PICKLE)


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) == 1
    return content.replace(old, new)


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(2))
    return buffer.getvalue()


DAMAGED = {  # content, and what the error says
    "empty": (b"", "it is empty"),
    "a web page": (b"<!DOCTYPE html><html>", "it begins with b'<!DOCTYPE html"),
    "an npz": (npz(), "not one that torch.save has written"),
    "a plain pickle": (pickle.dumps([1]), "not one that torch.save has written"),
    "a list": (zip_with(pickle.dumps([1])), "does not hold a dict"),
    "no tensors": (zip_with(pickle.dumps({"epoch": 3})), r"no tensors but .*\['epoch'\]"),
    "no safetensors": (safetensors.numpy.save({}), "no tensors"),
    "safetensors, cut off": (SAFETENSORS[:-1], "header"),
    "zip, cut off": (ZIP.read_bytes()[:-100], "not a zip file"),
    "zip, a flipped bit": (replaced(ZIP.read_bytes(), FLAT, FLAT[:-1] + b"\1"), RECORD),
    "zip, a missing record": (rewritten(RECORD, None), RECORD),
    "zip, a short record": (rewritten(RECORD, FLAT[:-4]), "storage 0 is not whole"),
    "legacy, cut off": (LEGACY.read_bytes()[:-1], "is not whole"),
    "legacy, a wrong count": (
        replaced(LEGACY.read_bytes(), b"\x18" + bytes(7) + FLAT, b"\x17" + bytes(7) + FLAT),
        "has 23 elements instead of 24",
    ),
}
for place, wrong in {
    "after": b"K\x04K\x05\x85",
    "before": b"J\xff\xff\xff\xffK\x05\x85",
}.items():
    trouble = r"a tensor \[5\] reaches outside"
    zipped = rewritten(PICKLE, replaced(zip_pickle(), STRIDED, wrong))
    DAMAGED[f"zip, a tensor {place} its storage"] = zipped, trouble
    legacy = replaced(LEGACY.read_bytes(), STRIDED, wrong)
    DAMAGED[f"legacy, a tensor {place} its storage"] = legacy, trouble


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_an_error_that_names_the_file_and_the_trouble(damage, tmp_path):
    content, trouble = DAMAGED[damage]
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(UserError, match=rf"w\.pt: cannot be read as weights: .*{trouble}"):
        weights.load_state_dict(tmp_path / "w.pt")


def test_absent_files_and_directories_are_errors(tmp_path):
    with pytest.raises(UserError, match="absent: cannot be read: No such file"):
        weights.load_state_dict(tmp_path / "absent")
    with pytest.raises(UserError, match=f"{tmp_path.name}: cannot be read: Is a directory"):
        weights.load_state_dict(tmp_path)


def mutants(content: bytes, num: int, *, end: int | None = None) -> list[bytes]:
    """`num` copies with a changed byte, and `num` that are cut off, before `end`."""
    rng = np.random.default_rng(0)
    copies = []
    for position in rng.integers(0, end or len(content), num):
        copies.append(content[:position])
        changed = content[position] ^ int(rng.integers(1, 256))
        copies.append(content[:position] + bytes([changed]) + content[position + 1 :])
    return copies


def outcomes(path: pathlib.Path, contents: list[bytes]) -> list[dict | None]:
    """What is read from each content, None for a `UserError`; nothing else may be raised."""
    results = []
    for content in contents:
        path.write_bytes(content)
        try:
            results.append(weights.load_state_dict(path))
        except UserError:
            results.append(None)
    return results


def test_random_damage_to_a_zip_file_never_gives_wrong_weights(tmp_path):
    expected = weights.load_state_dict(ZIP)
    for result in outcomes(tmp_path / "w", mutants(ZIP.read_bytes(), 200)):
        if result is not None:  # what was changed is not used
            assert_same_bits(result, expected)


@pytest.mark.parametrize("kind", ["zip's pickle", "legacy", "safetensors"])
def test_random_damage_gives_a_clear_error_or_arrays(kind, tmp_path):
    contents = {
        "zip's pickle": [rewritten(PICKLE, mutant) for mutant in mutants(zip_pickle(), 100)],
        "legacy": mutants(LEGACY.read_bytes(), 200),
        "safetensors": mutants(SAFETENSORS, 100),
    }[kind]
    results = outcomes(tmp_path / "w", contents)
    assert results.count(None) >= len(contents) / 2  # the ones that are cut off
    for result in results:
        assert result is None or all(isinstance(x, np.ndarray) for x in result.values())


def test_random_damage_to_a_recorded_network_gives_a_clear_error_or_arrays(shared, tmp_path):
    content = (shared / "golden" / "resnet18_legacy.pt").read_bytes()
    outcomes(tmp_path / "w", mutants(content, 20, end=20_000))  # its pickles
    content = (shared / "golden" / "lenet5_half.pt").read_bytes()
    expected = weights.load_state_dict(shared / "golden" / "lenet5_half.pt")
    for result in outcomes(tmp_path / "w", mutants(content, 100)):
        if result is not None:
            assert_same_bits(result, expected)


# --- The script -------------------------------------------------------------


@pytest.fixture
def convert_victim(monkeypatch):
    """Runs scripts/convert_victim.py with arguments; returns its exit status."""
    script = load_script("convert_victim")

    def run(*args: pathlib.Path) -> int:
        monkeypatch.setattr("sys.argv", ["convert_victim.py", *map(str, args)])
        return exit_status(script.main)

    return run


def test_script_converts_and_says_what_it_has_found(convert_victim, tmp_path, capsys):
    state_dict = random_weights(RESNET)
    wrapped = {f"module.{name}": array for name, array in state_dict.items()}
    wrapped["module.bn1.num_batches_tracked"] = np.array(5)
    weights.save_state_dict(tmp_path / "in", wrapped)
    assert convert_victim(tmp_path / "in", tmp_path / "victims" / "out") == 0
    assert_same_bits(weights.load_state_dict(tmp_path / "victims" / "out"), state_dict)
    assert weights.load_metadata(tmp_path / "victims" / "out")["model"] == "resnet18_8x"
    num_params = sum(array.size for name, array in state_dict.items() if "running" not in name)
    out = capsys.readouterr().out
    assert f"resnet18_8x, width 2, 3 channels, 3 classes, {num_params:,} parameters" in out


def test_script_keeps_what_an_owner_knows(convert_victim, tmp_path):
    weights.save_state_dict(tmp_path / "in", random_weights(RESNET))
    known = ["--mean", "0.1", "0.2", "0.3", "--std", "0.4", "0.5", "0.6", "--test_accuracy", "0.9"]
    assert convert_victim(tmp_path / "in", tmp_path / "out", *known) == 0
    metadata = weights.load_metadata(tmp_path / "out")
    assert json.loads(metadata["mean"]) == [0.1, 0.2, 0.3]
    assert json.loads(metadata["std"]) == [0.4, 0.5, 0.6]
    assert json.loads(metadata["test_accuracy"]) == 0.9


def test_script_refuses_bad_weights_and_existing_files(convert_victim, tmp_path, capsys):
    state_dict = random_weights(LENET)
    weights.save_state_dict(tmp_path / "in", state_dict | {"conv2.bias": np.full(8, np.inf)})
    assert convert_victim(tmp_path / "in", tmp_path / "out") == 2
    assert "conv2.bias" in capsys.readouterr().err
    assert convert_victim(tmp_path / "absent", tmp_path / "out") == 2
    assert "absent" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    before = (tmp_path / "in").read_bytes()
    assert convert_victim(tmp_path / "in", tmp_path / "in") == 2
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "in").read_bytes() == before
