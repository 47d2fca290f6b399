"""What users wrap networks in, taken off the names of a state dict.

DataParallel, torch.compile, Lightning and averaged copies name a network's tensors behind
prefixes and put counters beside them; some networks stand behind a layer that normalises.
"""

import re
from typing import NamedTuple

import numpy as np

from disguide_jax.core import pixels
from disguide_jax.files.state_dicts import COPY

Arrays = dict[str, np.ndarray]

# Names that users give to a network within another module, the likeliest first.
NETWORKS = (
    *("module", "_orig_mod", "model", "net", "network", "backbone", "encoder", "base_model"),
    "student",
)
# Of torch's averaged models, and of what counts operations.
COUNTERS = re.compile(r"(^|\.)(n_averaged|total_ops|total_params)$")
# A loss that is saved with its network, and its weights of classes.
LOSSES = re.compile(r"(^|\.)(criterion|\w*loss\w*)\.")
MEAN = re.compile(r"(?<!running_)(mean|mu)$")


class Unwrapped(NamedTuple):
    """A network's tensors by its own names."""

    arrays: Arrays
    normalisation: dict[str, tuple[float, ...]]  # mean and std of pixels in [0, 1], or nothing
    notes: list[str]  # sentences on what was taken off


def unwrap(arrays: Arrays) -> Unwrapped:
    """Takes off the names, and leaves out, what is not the network's own.

    Only a prefix goes behind which there is a whole network: what has no kernels, of two
    dimensions or more, cannot keep it from going, and a last layer beside it keeps its name.
    """
    notes = []
    kept = {name: array for name, array in arrays.items() if not _is_beside(name, array)}
    if left_out := [name for name in arrays if name not in kept]:
        notes.append(f"left out {_some(left_out)}: no weights of the network")
    kept, normalisation, layer_notes = _without_normalisation(kept)
    notes += layer_notes
    prefix = ""
    while network := _network(kept):
        copies = _copies(kept, network)
        bare = _bare(kept, network, copies)
        if bare is None:
            break
        if copies:
            notes.append(f"left out {_some(copies)}: networks beside {prefix}{network}")
        kept, prefix = bare, f"{prefix}{network}."
        if network.isdecimal() and network != "0" and not normalisation:
            notes.append(
                f"the network is number {network} of a Sequential: if what stands before it "
                f"normalises images, give its --mean and --std"
            )
    if prefix:
        notes.append(f"took the prefix {prefix} off the names")
    return Unwrapped(kept, normalisation, notes)


def _is_beside(name: str, array: np.ndarray) -> bool:
    """Whether a tensor is a counter or of a loss."""
    counts = array.size == 1 and array.ndim < 2 and array.dtype.kind in "iu"
    counts = counts and not name.endswith("num_batches_tracked")
    return bool(counts or COUNTERS.search(name) or LOSSES.search(name))


def _network(arrays: Arrays) -> str:
    """The first part of the names that leads to a network within, or ""."""
    kernels: dict[str, list[str]] = {}
    for name, array in arrays.items():
        first, _, rest = name.partition(".")
        if array.ndim >= 2:
            kernels.setdefault(first, []).append(rest)
    # Behind a layer's own name there is only "weight".
    modules = [first for first, names in kernels.items() if all("." in rest for rest in names)]
    usual = [first for first in NETWORKS if all(kernels.get(first, [""]))]
    return next(iter(usual or (modules if len(kernels) == 1 else [])), "")


def _bare(arrays: Arrays, network: str, copies: list[str]) -> Arrays | None:
    """The tensors without a network's prefix and without its copies; None if names collide."""
    kept = [name for name in arrays if name.partition(".")[0] not in copies]
    bare = {name.removeprefix(f"{network}."): arrays[name] for name in kept}
    return bare if len(bare) == len(kept) else None


def _copies(arrays: Arrays, network: str) -> list[str]:
    """The first parts of names that lead to copies of a network, or to its teacher."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, array in arrays.items():
        first, _, rest = name.partition(".")
        shapes.setdefault(first, {})[_plain(rest)] = array.shape
    own = shapes.pop(network)
    return [first for first, found in shapes.items() if found == own or COPY.search(first)]


def _plain(name: str) -> str:
    """A name without the usual prefixes: copies are not always wrapped alike."""
    while name.split(".")[0] in NETWORKS:
        name = name.partition(".")[2]
    return name


def _without_normalisation(
    arrays: Arrays,
) -> tuple[Arrays, dict[str, tuple[float, ...]], list[str]]:
    """The tensors without those of a layer that normalises images, and what it subtracts."""
    for name, mean in arrays.items():
        partners = {MEAN.sub(std, name) for std in ("std", "sigma")} - {name}
        for partner in sorted(partners & arrays.keys()):
            std = arrays[partner]
            if std.shape != mean.shape or not _per_channel(mean) or not (std > 0).all():
                continue
            kept = {key: array for key, array in arrays.items() if key not in (name, partner)}
            levels = max(mean.max(), std.max()) > 2  # of pixels in [0, 255]
            scale = 2 * pixels.HALF_RANGE if levels else 1
            values = {
                key: tuple(round(float(x) / scale, 7) for x in array.ravel())
                for key, array in (("mean", mean), ("std", std))
            }
            spelled = " ".join(f"--{key} {' '.join(map(str, x))}" for key, x in values.items())
            note = (
                f"the network stands behind its own normalisation, {name} and {partner}, which "
                f"is kept unless another is given: {spelled}"
            )
            return kept, values, [note]
    return arrays, {}, []


def _per_channel(array: np.ndarray) -> bool:
    """Whether it may be [C], [C, 1, 1] or [1, C, 1, 1], of 1 or 3 channels."""
    shaped = array.size in (1, 3) and 1 <= array.ndim <= 4 and array.size == max(array.shape)
    return shaped and array.dtype.kind != "c" and bool(np.isfinite(array).all())


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
