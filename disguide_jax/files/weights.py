"""Weights in files, as PyTorch state dicts, and as variables, without PyTorch.

A state dict maps PyTorch's names to arrays in PyTorch's layout. Every module of this project
is named by its PyTorch path, here P, so that the rules need not know the networks:

| state dict                         | variables                             |
|------------------------------------|---------------------------------------|
| P.weight [out, in, height, width]  | params[P]["kernel"] [h, w, in, out]   |
| P.weight [out, in]                 | params[P]["kernel"] [in, out]         |
| P.weight [features]                | params[P]["scale"]                    |
| P.bias                             | params[P]["bias"]                     |
| P.running_mean, P.running_var      | batch_stats[P]["mean"], ["var"]       |
| P.num_batches_tracked              | nothing: no layer here needs it       |
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from disguide_jax.core.types import Variables
from disguide_jax.errors import UserError
from disguide_jax.files import atomic, torch_pickle, wrappers

StateDict = dict[str, np.ndarray]
StrPath = str | os.PathLike[str]

RESNETS = {(2, 2, 2, 2): "resnet18_8x", (3, 4, 6, 3): "resnet34_8x"}  # by blocks of each stage
LENETS = {6: "lenet5", 3: "lenet5_half"}  # by width
MAX_LISTED = 8  # tensors in one error message


# --- State dicts and variables ----------------------------------------------


class Architecture(NamedTuple):
    """What the weights of a classifier say about it."""

    model: str  # resnet18_8x, resnet34_8x, lenet5 or lenet5_half
    width: int  # channels after the first convolution
    channels: int  # of the images
    num_classes: int
    size: int = 0  # height and width of the images in pixels; 0: the network takes all


def recognise(state_dict: StateDict, where: str) -> Architecture:
    """The classifier that a state dict belongs to, by the few names and shapes that tell.

    `fit` checks all the others.

    Args:
      state_dict: names and arrays.
      where: what errors call it, such as the file it came from.

    Raises:
      UserError: it is none of this project's classifiers.
    """
    stages = re.findall(r"^layer(\d+)\.\d+\.conv1\.weight$", "\n".join(state_dict), re.M)
    blocks = tuple(stages.count(stage) for stage in sorted(set(stages)))
    stem, linear, fc1, fc2 = (
        np.shape(state_dict[name]) if name in state_dict else None
        for name in ("conv1.weight", "linear.weight", "fc1.weight", "fc2.weight")
    )
    match stem, linear, fc1, fc2:
        case (width, channels, 3, 3), (num_classes, _), _, None if blocks in RESNETS:
            return Architecture(RESNETS[blocks], width, channels, num_classes)
        case (width, channels, 5, 5), None, (_, inputs), (num_classes, _) if width in LENETS:
            side = math.isqrt(inputs // (20 * width))  # of the 20 * width last maps
            if side and inputs == 20 * width * side**2:
                size = 4 * side + 28
                return Architecture(LENETS[width], width, channels, num_classes, size)
    found = [f"{name} {list(np.shape(array))}" for name, array in state_dict.items()]
    raise UserError(
        f"{where}: not the weights of a classifier that this project knows."
        f"\nExpected resnet18_8x or resnet34_8x: conv1.weight [width, channels, 3, 3], bn1, "
        f"2, 2, 2, 2 or 3, 4, 6, 3 blocks layerN.M, linear.weight [classes, features];"
        f"\n      or lenet5 or lenet5_half: conv1.weight [6 or 3, channels, 5, 5], conv2, "
        f"conv3,\n      fc1.weight [features, 120 or 60 times a square], fc2.weight [classes, "
        f"features]."
        f"\nFound {', '.join(map(str, blocks)) or 'no'} blocks layerN.M and the tensors"
        f"\n  {_listed(found)}"
    )


def to_variables(state_dict: StateDict) -> Variables:
    """A state dict as variables, in its own dtypes, by the table above.

    Raises:
      UserError: the table has no line for a tensor.
    """
    params: dict[str, dict[str, np.ndarray]] = {}
    batch_stats: dict[str, dict[str, np.ndarray]] = {}
    for name, array in state_dict.items():
        path, _, kind = name.rpartition(".")
        match kind, array.ndim:
            case "weight", 4:
                leaf = params, "kernel", np.ascontiguousarray(array.transpose(2, 3, 1, 0))
            case "weight", 2:
                leaf = params, "kernel", np.ascontiguousarray(array.T)
            case "weight", 1:
                leaf = params, "scale", array
            case "bias", 1:
                leaf = params, "bias", array
            case "running_mean", 1:
                leaf = batch_stats, "mean", array
            case "running_var", 1:
                leaf = batch_stats, "var", array
            case "num_batches_tracked", _:
                continue
            case _:
                raise UserError(
                    f"{name} {list(array.shape)}: no layer of this project has such a tensor"
                )
        collection, key, value = leaf
        collection.setdefault(path, {})[key] = value
    return Variables(params, batch_stats)


def to_state_dict(variables: Variables) -> StateDict:
    """Variables of one network as a state dict: the inverse of `to_variables`."""
    state_dict = {}
    for path, leaves in variables.params.items():
        for key, leaf in leaves.items():
            array = np.asarray(leaf)
            if key == "kernel":
                array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
            state_dict[f"{path}.{'bias' if key == 'bias' else 'weight'}"] = array
    for path, leaves in variables.batch_stats.items():
        for key, leaf in leaves.items():
            state_dict[f"{path}.running_{key}"] = np.asarray(leaf)
    return state_dict


def fit(state_dict: StateDict, template: Variables, where: str) -> Variables:
    """The variables of a network from a state dict that must be exactly its own.

    Args:
      state_dict: names and arrays.
      template: variables with the right shapes and dtypes, such as `jax.eval_shape` gives.
      where: what errors call the state dict.

    Returns:
      Variables with the template's structure, shapes and dtypes.

    Raises:
      UserError: tensors are missing, unexpected, of another shape, or not finite.
    """
    # Every element is the same one: the names and shapes of a template take no memory.
    expected = to_state_dict(
        jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), template)
    )
    problems = []
    fitting = {}
    for name, wanted in expected.items():
        if name not in state_dict:
            problems.append(f"{name} {list(wanted.shape)} is missing")
        elif state_dict[name].shape != wanted.shape:
            shape = list(state_dict[name].shape)
            problems.append(f"{name} is {shape} instead of {list(wanted.shape)}")
        else:
            with np.errstate(over="ignore"):  # becomes infinite, and a problem
                fitting[name] = state_dict[name].astype(wanted.dtype)
            if not np.isfinite(fitting[name]).all():
                problems.append(f"{name} has values that are not finite {wanted.dtype} numbers")
    for name, array in state_dict.items():
        if name not in expected and not name.endswith("num_batches_tracked"):
            problems.append(f"{name} {list(array.shape)} is unexpected")
    if problems:
        raise UserError(f"{where}: does not fit the network:\n  {_listed(problems)}")
    return to_variables(fitting)


def fingerprint(state_dicts: Iterable[StateDict]) -> str:
    """One hash over names, types, shapes and bytes of all arrays, whatever file they are in."""
    digest = hashlib.sha256()
    for state_dict in state_dicts:
        for name, array in sorted(state_dict.items()):
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _listed(lines: list[str]) -> str:
    more = [f"and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
    return "\n  ".join(lines[:MAX_LISTED] + more)


# --- Files ------------------------------------------------------------------


def save_state_dict(
    path: StrPath, state_dict: StateDict, metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file that is either whole or not there, and its directories.

    Raises:
      UserError: it cannot be written.
    """
    path = pathlib.Path(path)
    # safetensors writes memory as it lies, whatever the strides.
    arrays = {name: np.asarray(array, order="C") for name, array in state_dict.items()}
    content = _with_sorted_header(safetensors.numpy.save(arrays, metadata))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def _with_sorted_header(content: bytes) -> bytes:
    """The same file, equal bits for equal content: safetensors writes metadata in any order."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


class Weights(NamedTuple):
    """What a file of weights holds."""

    state_dict: StateDict
    metadata: dict[str, str]  # of safetensors, and mean and std of a layer that normalises
    notes: list[str]  # sentences on what was chosen and what left out


def load_metadata(path: StrPath) -> dict[str, str]:
    """What a file says about itself; of formats without metadata, mean and std at most.

    Raises:
      UserError: it is absent or damaged.
    """
    return load(path).metadata


def load_state_dict(path: StrPath) -> StateDict:
    """The state dict of `load`."""
    return load(path).state_dict


def load(path: StrPath) -> Weights:
    """Reads safetensors and what `torch.save` writes, in its zip, legacy and tar formats.

    Of a checkpoint it returns the state dict within, whatever lies beside it, without the
    prefixes of wrappers and with one spelling for what CIFAR ResNets call either `shortcut` or
    `downsample`, and `linear` or `fc`. A pickle cannot make it run anything.

    Raises:
      UserError: the file is absent, damaged or malicious, or holds no weights.
    """
    path = pathlib.Path(path)
    notes: list[str] = []
    metadata: dict[str, str] = {}
    with _user_errors(path):
        match _sniff(path):
            case "safetensors":
                arrays = safetensors.numpy.load_file(path)
                with safetensors.safe_open(path, "np") as file:
                    metadata = file.metadata() or {}
            case "zip":
                with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                    arrays, notes = torch_pickle.read_zip(archive)
            case "legacy":
                with path.open("rb") as file:
                    arrays, notes = torch_pickle.read_legacy(file)
            case "tar":
                with tarfile.open(path, "r:") as archive:
                    arrays, notes = torch_pickle.read_tar(archive)
        if not arrays:
            raise ValueError("it holds no tensors")
    if "model" in metadata:  # this project wrote it
        return Weights(arrays, metadata, notes)
    unwrapped = wrappers.unwrap(arrays)
    said = {name: json.dumps(values) for name, values in unwrapped.normalisation.items()}
    notes += unwrapped.notes
    return Weights(_with_our_names(unwrapped.arrays), said | metadata, notes)


@contextlib.contextmanager
def _user_errors(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damage makes the readers stumble in every possible way
        raise UserError(
            f"{path}: cannot be read as weights: {str(error) or repr(error)}"
            f"\nExpected an undamaged safetensors file or state dict saved by torch.save."
        ) from error


def _sniff(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[8:9] == b"{":  # after the length of the header
        return "safetensors"
    if head.startswith(b"\x80"):  # a pickle
        return "legacy"
    if head[257:262] == b"ustar":
        return "tar"
    raise ValueError(f"it begins with {head[:24]!r}" if head else "it is empty")


def _with_our_names(arrays: StateDict) -> StateDict:
    if "layer1.0.conv1.weight" not in arrays:
        return arrays
    return {
        re.sub(r"^fc\.", "linear.", name.replace(".downsample.", ".shortcut.")): array
        for name, array in arrays.items()
    }
