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

A module within modules, as users' have them, has the names of all of them, joined by dots, as P;
and what the table does not have, such as an embedding, keeps its name and its layout.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from disguide_jax.core.types import Variables
from disguide_jax.errors import UserError, listed
from disguide_jax.files import architectures, atomic, torch_pickle, wrappers

StateDict = architectures.StateDict
StrPath = str | os.PathLike[str]


# --- State dicts and variables ----------------------------------------------


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
    """Variables of one network as a state dict: the inverse of `to_variables`.

    Raises:
      UserError: two of them would have one name.
    """
    state_dict: StateDict = {}
    for path, leaf in jax.tree.leaves_with_path(variables):
        name = _name(path, leaf)
        if name in state_dict:
            raise UserError(f"two variables of the network would both be called {name}")
        state_dict[name] = np.asarray(leaf).transpose(_axes(path, leaf)[0])
    return state_dict


def _name(path: tuple[Any, ...], leaf: Any) -> str:
    """In a state dict, of a leaf of variables by its path there."""
    *modules, last = (key.key for key in path[1:])
    layers = {"kernel": "weight", "scale": "weight"} if path[0].name == "params" else STATISTICS
    kind = layers.get(last, last) if last != "kernel" or leaf.ndim in (2, 4) else last
    return ".".join((*modules, kind))


STATISTICS = {"mean": "running_mean", "var": "running_var"}


def _axes(path: tuple[Any, ...], leaf: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The order of a leaf's axes in a state dict, and of a state dict's in a leaf."""
    if path[-1].key == "kernel" and leaf.ndim == 4:
        return (3, 2, 0, 1), (2, 3, 1, 0)
    if path[-1].key == "kernel" and leaf.ndim == 2:
        return (1, 0), (1, 0)
    return (tuple(range(leaf.ndim)),) * 2


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
        raise UserError(f"{where}: does not fit the network:\n  {listed(problems)}")
    return jax.tree.map_with_path(
        lambda path, leaf: np.ascontiguousarray(
            fitting[_name(path, leaf)].transpose(_axes(path, leaf)[1])
        ),
        template,
    )


def fingerprint(state_dicts: Iterable[StateDict]) -> str:
    """One hash over names, types, shapes and bytes of all arrays, whatever file they are in."""
    digest = hashlib.sha256()
    for state_dict in state_dicts:
        for name, array in sorted(state_dict.items()):
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


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
    """The state dict of `load`, in the one spelling of `architectures`."""
    return architectures.with_our_names(load(path).state_dict)


def load(path: StrPath) -> Weights:
    """Reads safetensors and what `torch.save` writes, in its zip, legacy and tar formats.

    Of a checkpoint it returns the state dict within, whatever lies beside it, without the
    prefixes of wrappers. A pickle cannot make it run anything.

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
    return Weights(unwrapped.arrays, said | metadata, notes + unwrapped.notes)


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
