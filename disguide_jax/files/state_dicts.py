"""Finds the weights in what a pickle holds, among whatever lies beside them."""

import math
import re
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple, TypeGuard

import ml_dtypes
import numpy as np

from disguide_jax.files import inert

DTYPES = {  # PyTorch's names are NumPy's
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
}

# The keys under which checkpoints keep weights, the likeliest first.
USUAL = (
    *("state_dict", "model_state_dict", "model", "net", "network", "model_state", "weights"),
    *("params", "module"),
)
# The keys of second copies of a network.
COPY = re.compile(r"(^|_)(ema|swa|avg|averaged?|shadow|teacher|target|momentum)(_|$)", re.I)
# What holds less than this part of the largest dict's elements is a metric, no network.
LEAST = 1e-3


class Storage(NamedTuple):
    """Numbers that tensors are views of."""

    key: str
    dtype: np.dtype | None  # None: its tensors say
    size: int  # in elements, or in bytes without a dtype
    offset: int = 0  # of a part of a storage
    data: bytes | None = None  # None: it lies outside the pickle, by its key


class Tensor(NamedTuple):
    """A view of a storage."""

    storage: Storage
    dtype: np.dtype
    offset: int  # in elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


class Unreadable(NamedTuple):
    """A tensor that is no plain array."""

    kind: str  # such as torch._utils._rebuild_qtensor


Leaves = dict[str, Tensor | Unreadable]


class Candidate(NamedTuple):
    """A dict of tensors, or a module that was saved whole."""

    path: tuple[str, ...]  # keys and attributes that lead to it
    leaves: Leaves
    kind: str = ""  # of a module


def find(checkpoint: object) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in what a pickle holds, and sentences on what was chosen.

    Raises:
      ValueError: there is none, or it needs tensors that cannot be read; says what was found.
    """
    candidates = list(_candidates(checkpoint, (), set()))
    if not candidates:
        raise ValueError(_nothing(checkpoint))
    least = LEAST * max(_elements(each) for each in candidates)
    candidates = [each for each in candidates if _elements(each) >= least]
    chosen, *others = sorted(candidates, key=_unlikeliness)
    tensors = {}
    for name, leaf in chosen.leaves.items():
        if isinstance(leaf, Unreadable):
            raise ValueError(
                f"{name} is no plain tensor but a quantised, sparse or virtual one ({leaf.kind}). "
                f"Save it as a plain one, such as tensor.dequantize() or tensor.to_dense() gives"
            )
        tensors[name] = leaf
    notes = []
    if chosen.kind:
        notes.append(f"read from a whole {chosen.kind}, of which nothing was run")
    if others:
        more = ", ".join(map(_spelled, others[:5])) + (", ..." if len(others) > 5 else "")
        notes.append(f"read from {_spelled(chosen)}; not from {more}")
    return tensors, notes


def _nothing(checkpoint: object) -> str:
    """Why there are no weights."""
    kind = inert.kind(checkpoint)
    entries = _mapping(checkpoint)
    if entries and "param_groups" in entries:
        trouble = "it holds the state of an optimiser, not of a network"
    elif entries is not None and (entries or isinstance(checkpoint, dict)):
        keys = ", ".join(repr(str(key)) for key in entries)
        kinds = ", ".join(dict.fromkeys(map(inert.kind, entries.values())))
        trouble = f"it holds no tensors but the keys [{keys:.300}] ({kinds or 'nothing':.300})"
    elif "." in kind:
        trouble = f"it asks for {kind}, which is refused"
    else:
        trouble = f"it does not hold a dict of tensors but a {kind}"
    return f"{trouble}. {inert.TRUSTED}"


def _elements(candidate: Candidate) -> int:
    return sum(
        math.prod(leaf.shape)
        for leaf in candidate.leaves.values()
        # The states of random numbers are integers.
        if isinstance(leaf, Tensor) and leaf.dtype.kind not in "iub"
    )


def _unlikeliness(candidate: Candidate) -> tuple[bool, int, int]:
    """Sorts copies behind originals, then by the usual keys, then by size."""
    usual = [USUAL.index(key) for key in candidate.path if key in USUAL]
    copy = any(COPY.search(key) for key in candidate.path)
    return copy, min(usual, default=len(USUAL)), -_elements(candidate)


def _spelled(candidate: Candidate) -> str:
    return ".".join(candidate.path) or "its root"


# --- Containers -------------------------------------------------------------


def _candidates(value: object, path: tuple[str, ...], seen: set[int]) -> Iterator[Candidate]:
    """All dicts with tensors in a value, which may hold itself."""
    if id(value) in seen or isinstance(value, str | bytes) or _leaf(value) is not None:
        return
    seen.add(id(value))
    if _is_module(value):
        leaves = dict(_leaves_of_module(value, ""))
        if leaves:
            yield Candidate(path, leaves, inert.kind(value))
        return
    children: dict[Hashable, object] = {}
    if isinstance(value, list | tuple | set | frozenset):
        children = dict(enumerate(value))
    elif isinstance(value, inert.Object):
        children = dict(enumerate([*value.args, *value.items])) | inert.attributes(value)
    mapping = (_mapping(value) or {}) | {k: v for k, v in children.items() if isinstance(k, str)}
    if "param_groups" in mapping:
        return  # an optimiser's
    leaves = {key: leaf for key, child in mapping.items() if (leaf := _leaf(child)) is not None}
    if leaves and all(isinstance(key, str) for key in leaves):
        yield Candidate(path, leaves)
    for key, child in (children | mapping).items():
        yield from _candidates(child, (*path, str(key)), seen)


def _mapping(value: object) -> dict[Any, Any] | None:
    """What a dict holds, or an object that may be one."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, inert.Object):
        return None
    match value.path, value.args:
        case "collections.OrderedDict", (list(pairs),):  # Python 2
            return dict(pairs) | value.entries
    return value.entries


def _is_module(value: object) -> TypeGuard[inert.Object]:
    if not isinstance(value, inert.Object):
        return False
    if value.path.startswith("__torch__."):  # TorchScript
        return True
    return {"_parameters", "_buffers", "_modules"} <= inert.attributes(value).keys()


def _leaves_of_module(
    module: inert.Object, prefix: str
) -> Iterator[tuple[str, Tensor | Unreadable]]:
    members = inert.attributes(module)
    if "_parameters" in members:
        parts = (_mapping(members[f"_{part}"]) for part in ("parameters", "buffers", "modules"))
        members = {name: member for part in parts if part for name, member in part.items()}
    for name, member in members.items():
        leaf = _leaf(member)
        if leaf is not None:
            yield f"{prefix}{name}", leaf
        elif _is_module(member):
            yield from _leaves_of_module(member, f"{prefix}{name}.")


# --- Tensors ----------------------------------------------------------------


def _leaf(value: object) -> Tensor | Unreadable | None:
    """The tensor that a value is, if it is one."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, inert.Object):
        return None
    array = inert.array(value)
    if array is not None:
        storage = Storage("of an array", array.dtype, array.size, data=array.tobytes())
        strides = tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides)
        return Tensor(storage, array.dtype, 0, array.shape, strides if array.ndim else ())
    return _rebuilt(value.path, value.args)


def _rebuilt(path: str, args: tuple[Any, ...]) -> Tensor | Unreadable | None:
    package, _, function = path.rpartition(".")
    if package not in ("torch._utils", "torch._tensor"):
        return _variable(path, args)
    match function, args:
        case "_rebuild_tensor" | "_rebuild_tensor_v2", (
            Storage() as of,
            offset,
            shape,
            strides,
            *more,
        ):
            lazily = any(map(_mapping, more[2:]))  # negated or conjugated when it is used
            if of.dtype is not None and not lazily:
                return Tensor(of, of.dtype, offset, tuple(shape), tuple(strides))
        case "_rebuild_tensor_v3", (Storage() as of, offset, shape, strides, _, _, dtype, *more):
            name = inert.kind(dtype).removeprefix("torch.")
            if name in DTYPES and not any(map(_mapping, more)):
                return Tensor(of, DTYPES[name], offset, tuple(shape), tuple(strides))
        case (
            (
                "_rebuild_parameter"
                | "_rebuild_parameter_with_state"
                | "_rebuild_device_tensor_from_numpy"
                | "_rebuild_device_tensor_from_cpu_tensor"
            ),
            (tensor, *_),
        ):
            return _leaf(tensor)
        case "_rebuild_from_type_v2", (how, _, tuple(inner), *_):  # a tensor with attributes
            return _rebuilt(inert.kind(how), inner)
    return Unreadable(path) if function.startswith("_rebuild") else None


def _variable(path: str, args: tuple[Any, ...]) -> Tensor | Unreadable | None:
    """A tensor within a class of its own."""
    classes = ("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
    if args and path in (*classes, "torch.autograd.variable.Variable"):
        return _leaf(args[0])
    return None
