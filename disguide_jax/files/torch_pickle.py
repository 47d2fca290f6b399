"""PyTorch's own formats of weights, read without PyTorch. A pickle cannot make it run anything.

All hold a pickle in which a tensor is a view of a storage, and the storages apart from it: as
members of a zip archive, or, before PyTorch 1.6, one after the other behind the pickle, or, up
to 0.1.10, as members of a tar archive.
"""

import functools
import io
import sys
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from disguide_jax.files import inert
from disguide_jax.files.state_dicts import DTYPES, Storage, Tensor, find

STORAGES = {  # of elements; those of quantised tensors are skipped by their size
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
    "QUInt4x2Storage": "uint8",
    "QUInt2x4Storage": "uint8",
}

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Read(NamedTuple):
    """Weights out of a file."""

    arrays: dict[str, np.ndarray]  # by PyTorch's names
    notes: list[str]  # sentences on what was chosen


def read_zip(archive: zipfile.ZipFile) -> Read:
    """The state dict in an archive.

    Raises:
      Exception: it is damaged or malicious; damage can raise nearly any kind.
    """
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("it is a zip archive, but not one that torch.save has written")
    root = pickles[0].removesuffix("data.pkl")
    order = "little"
    if f"{root}byteorder" in archive.namelist():
        order = archive.read(f"{root}byteorder").decode()
    unpickler = inert.Unpickler(io.BytesIO(archive.read(pickles[0])), _stored)
    checkpoint = unpickler.load_checked()
    return _read(checkpoint, lambda key: archive.read(f"{root}data/{key}"), order)


def read_legacy(file: BinaryIO) -> Read:
    """The state dict in a file of before PyTorch 1.6. Raises as `read_zip` does."""
    if inert.Unpickler(file).load_checked() != LEGACY_MAGIC:
        raise ValueError(
            "it is a pickle, but not one that torch.save has written. Save the weights by "
            "torch.save(model.state_dict(), FILE)"
        )
    for _ in ("version of the format", "system"):
        inert.Unpickler(file).load_checked()
    storages: dict[str, Storage] = {}

    def stored(saved_id: object) -> object:
        found = _stored(saved_id)
        if isinstance(found, Storage):
            storages[found.key] = found
            match saved_id:
                case (*_, (_, int(offset), int(size))):  # a part of it
                    return found._replace(offset=offset, size=size)
        return found

    checkpoint = inert.Unpickler(file, stored).load_checked()
    keys = inert.Unpickler(file).load_checked()
    if not isinstance(keys, list):
        raise ValueError("its pickle does not list the storages")
    content = {key: _content(file, storages[key]) for key in keys}
    return _read(checkpoint, content.__getitem__)


def read_tar(archive: tarfile.TarFile) -> Read:
    """The state dict in a file of PyTorch up to 0.1.10. Raises as `read_zip` does."""
    file = _member(archive, "storages")
    storages: dict[object, Storage] = {}
    content = {}
    for _ in range(_number(file)):
        key, _device, kind = _triple(file)
        size = int.from_bytes(file.read(8), "little")
        storages[key] = _storage(kind, str(key), size)
        content[str(key)] = file.read(size * _itemsize(storages[key]))
    views: Any = inert.Unpickler(file).load_checked()
    for key, root, offset, size in views:
        storages[key] = storages[root]._replace(offset=offset, size=size)

    file = _member(archive, "tensors")
    tensors = {}
    for _ in range(_number(file)):
        key, root, _kind = _triple(file)
        # The number of dimensions is an int32 in eight bytes, of which four are arbitrary.
        num = int.from_bytes(file.read(8)[:4], "little")
        numbers = np.frombuffer(file.read(8 * (2 * num + 1)), "<i8").tolist()
        shape, strides, offset = numbers[:num], numbers[num:-1], numbers[-1]
        dtype = storages[root].dtype
        if dtype is not None:
            tensors[key] = Tensor(storages[root], dtype, offset, tuple(shape), tuple(strides))

    def stored(saved_id: Any) -> object:
        return saved_id[0] if isinstance(saved_id, tuple) else tensors[int(saved_id)]

    checkpoint = inert.Unpickler(_member(archive, "pickle"), stored).load_checked()
    return _read(checkpoint, content.__getitem__)


def _member(archive: tarfile.TarFile, name: str) -> BinaryIO:
    file = archive.extractfile(name) if name in archive.getnames() else None
    if file is None:
        raise ValueError("it is a tar archive, but not one that torch.save has written")
    return io.BytesIO(file.read())


def _number(file: BinaryIO) -> int:
    number = inert.Unpickler(file).load_checked()
    if not isinstance(number, int):
        raise ValueError("its pickle does not count what follows")
    return number


def _triple(file: BinaryIO) -> tuple[Any, Any, Any]:
    match inert.Unpickler(file).load_checked():
        case (first, second, third):
            return first, second, third
    raise ValueError("its pickle does not describe what follows")


def _stored(saved_id: object) -> object:
    """What a pickle says is kept apart: a storage, without its content."""
    match saved_id:
        case "module", kind, _source_file, _source:
            return kind
        case "storage", kind, str(key), _device, int(size), *_part:
            return _storage(kind, key, size)
    raise ValueError("its pickle keeps something elsewhere that is no storage")


def _storage(kind: object, key: str, size: int) -> Storage:
    name = inert.kind(kind).rpartition(".")[2]
    if name not in STORAGES and name != "UntypedStorage":
        raise ValueError(f"its pickle names an unknown kind of storage, {inert.kind(kind)}")
    return Storage(key, DTYPES[STORAGES[name]] if name in STORAGES else None, size)


def _content(file: BinaryIO, storage: Storage) -> bytes:
    """The next storage of a file, behind its size."""
    size = int.from_bytes(file.read(8), "little")
    if size != storage.size:
        raise ValueError(f"storage {storage.key} has {size} elements instead of {storage.size}")
    return file.read(size * _itemsize(storage))


def _itemsize(storage: Storage) -> int:
    return storage.dtype.itemsize if storage.dtype else 1


def _read(checkpoint: object, content: Callable[[str], bytes], order: str = "little") -> Read:
    """The state dict in a checkpoint, given the bytes of storages in an order."""
    tensors, notes = find(checkpoint)

    @functools.cache  # tensors share storages
    def elements(storage: Storage, dtype: np.dtype) -> np.ndarray:
        if storage.data is not None:
            return np.frombuffer(storage.data, dtype)
        data, itemsize = content(storage.key), _itemsize(storage)
        start, end = itemsize * storage.offset, itemsize * (storage.offset + storage.size)
        if not 0 <= start <= end <= len(data):
            raise ValueError(f"storage {storage.key} is not whole")
        data = data[start:end]
        if order != sys.byteorder:
            width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
            data = np.frombuffer(data, f"u{width}").byteswap().tobytes()
        return np.frombuffer(data, dtype)

    arrays = {
        name: _strided(elements(tensor.storage, tensor.dtype), tensor)
        for name, tensor in tensors.items()
    }
    return Read(arrays, notes)


def _strided(elements: np.ndarray, tensor: Tensor) -> np.ndarray:
    """A copy of the part of a flat array that a tensor is."""
    _, _, offset, shape, strides = tensor
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if min(offset, *shape, *strides, 0) < 0 or (0 not in shape and last >= len(elements)):
        raise ValueError(f"a tensor {list(shape)} reaches outside its storage")
    in_bytes = tuple(step * elements.itemsize for step in strides)
    return np.ndarray(shape, elements.dtype, elements[offset:], strides=in_bytes).copy()
