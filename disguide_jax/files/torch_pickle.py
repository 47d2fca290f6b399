"""PyTorch's own formats of weights, read without PyTorch. A pickle cannot make it run anything.

Both hold a pickle in which a tensor is a view of a storage, and the storages apart from it:
as members of a zip archive, or, before PyTorch 1.6, one after the other behind the pickle.
"""

import functools
import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
DTYPES = {dtype.name for dtype in STORAGES.values()}  # PyTorch has the same names

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class _Storage(NamedTuple):
    key: str
    kind: str  # a key of STORAGES
    size: int  # in elements


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int  # in elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


def read_zip(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """The state dict in an archive, by PyTorch's names.

    Raises:
      Exception: it is damaged or malicious; damage can raise nearly any kind.
    """
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("it is a zip archive, but not one that torch.save has written")
    root = pickles[0].removesuffix("data.pkl")
    checkpoint = _Unpickler(io.BytesIO(archive.read(pickles[0]))).load_checked()
    return _arrays(checkpoint, lambda storage: archive.read(f"{root}data/{storage.key}"))


def read_legacy(file: BinaryIO) -> dict[str, np.ndarray]:
    """The state dict in a file of before PyTorch 1.6. Raises as `read_zip` does."""
    if _Unpickler(file).load_checked() != LEGACY_MAGIC:
        raise ValueError("it is a pickle, but not one that torch.save has written")
    for _ in ("version of the format", "system"):
        _Unpickler(file).load_checked()
    unpickler = _Unpickler(file)
    checkpoint = unpickler.load_checked()
    content = {}
    keys = _Unpickler(file).load_checked()
    if not isinstance(keys, list):
        raise ValueError("its pickle does not list the storages")
    for key in keys:
        storage = unpickler.storages[key]
        size = int.from_bytes(file.read(8), "little")
        if size != storage.size:
            raise ValueError(f"storage {key} has {size} elements instead of {storage.size}")
        content[key] = file.read(size * STORAGES[storage.kind].itemsize)
    return _arrays(checkpoint, lambda storage: content[storage.key])


class _Unpickler(pickle.Unpickler):
    """Builds plain containers, `_Storage` and `_Tensor`, and calls nothing else.

    A pickle can set attributes of whatever it gets hold of. So that is either immutable or
    made for it alone.
    """

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.file = file
        self.storages: dict[str, _Storage] = {}

    def load_checked(self) -> object:
        start = self.file.tell()
        for count, (opcode, arg, _) in enumerate(pickletools.genops(self.file)):
            # For a damaged index of 2^32 Python would write 64 GB of pointers.
            if opcode.name.endswith("PUT") and isinstance(arg, int) and arg > count:
                raise ValueError(f"its pickle numbers an object {arg}")
        self.file.seek(start)
        return self.load()

    def find_class(self, module: str, name: str) -> object:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "collections", "Counter":  # in the state of learning rate schedules
                return dict
            case "torch", _ if name in STORAGES or name in DTYPES:
                return name
            case "torch._utils", "_rebuild_tensor_v2":
                return lambda storage, offset, shape, strides, requires_grad, hooks: _Tensor(
                    storage, offset, shape, strides
                )
            case "torch._utils", "_rebuild_parameter":
                return lambda tensor, requires_grad, hooks: tensor
        raise ValueError(
            f"it asks for {module}.{name}, which is refused. If you trust the file, load it in "
            f"PyTorch and save the weights alone: torch.save(model.state_dict(), FILE)."
        )

    def persistent_load(self, saved_id: tuple[Any, ...]) -> _Storage:
        # The location is a device. Only the legacy format has a view, and it is always None.
        _, kind, key, _location, size, *view = saved_id
        if saved_id[0] != "storage" or kind not in STORAGES or any(view):
            raise ValueError("its pickle names an unknown kind of storage")
        self.storages[key] = _Storage(key, kind, size)
        return self.storages[key]


def _arrays(checkpoint: object, content: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
    """The state dict in a checkpoint, given the bytes of storages."""

    @functools.cache  # tensors share storages
    def elements(storage: _Storage) -> np.ndarray:
        data, dtype = content(storage), STORAGES[storage.kind]
        if len(data) != storage.size * dtype.itemsize:
            raise ValueError(f"storage {storage.key} is not whole")
        return np.frombuffer(data, dtype)

    return {
        name: _strided(elements(tensor.storage), tensor)
        for name, tensor in _state_dict_in(checkpoint).items()
    }


def _state_dict_in(checkpoint: object) -> dict[str, _Tensor]:
    if not isinstance(checkpoint, dict):
        raise ValueError("it does not hold a dict of tensors")
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(checkpoint.get(key), dict):
            return _state_dict_in(checkpoint[key])
    tensors = {name: value for name, value in checkpoint.items() if isinstance(value, _Tensor)}
    if not tensors:
        raise ValueError(f"it holds no tensors but the keys {list(map(str, checkpoint))}"[:200])
    return tensors


def _strided(elements: np.ndarray, tensor: _Tensor) -> np.ndarray:
    """A copy of the part of a flat array that a tensor is."""
    _, offset, shape, strides = tensor
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if min(offset, *shape, *strides, 0) < 0 or (0 not in shape and last >= len(elements)):
        raise ValueError(f"a tensor {list(shape)} reaches outside its storage")
    in_bytes = tuple(step * elements.itemsize for step in strides)
    return np.lib.stride_tricks.as_strided(elements[offset:], shape, in_bytes).copy()
