"""Writes the files that `torch.save` writes, without torch and whatever else they name."""

import collections
import io
import pickle
import struct
import tarfile
import zipfile
from typing import Any, NamedTuple

import numpy as np

LEGACY_HEAD = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {}))
KINDS = {
    "float64": "Double",
    "float32": "Float",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "complex128": "ComplexDouble",
    "complex64": "ComplexFloat",
    "int64": "Long",
    "int32": "Int",
    "uint8": "Byte",
    "bool": "Bool",
}


class Named(NamedTuple):
    """A global, by module and name."""

    module: str
    name: str

    def __call__(self):
        """Only what can be called is pickled as such."""


class Made:
    """What a pickle makes by a call, and then gives a state, items or entries."""

    def __init__(self, path: str, *args: Any, state: Any = None, entries: dict | None = None):
        module, _, name = path.rpartition(".")
        self.how = Named(module, name), args, state, None, entries and iter(entries.items())


class Storage:
    """What is kept outside the pickle; several tensors may share one."""

    def __init__(self, array: np.ndarray, kind: str = "", part: tuple | None = None):
        self.content, self.part = array.tobytes(), part
        self.kind = kind or f"{KINDS[array.dtype.name]}Storage"
        self.size = len(self.content) if self.kind == "UntypedStorage" else array.size


def tensor(array: np.ndarray, how: str = "_rebuild_tensor_v2") -> Made:
    """A tensor with a storage of its own."""
    array = np.ascontiguousarray(array) if array.ndim else array
    strides = tuple(step // array.itemsize for step in array.strides)
    more = () if how == "_rebuild_tensor" else (False, collections.OrderedDict())
    return Made(f"torch._utils.{how}", Storage(array), 0, array.shape, strides, *more)


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Made]:
    """A state dict."""
    return collections.OrderedDict((name, tensor(array)) for name, array in arrays.items())


class _Pickler(pickle._Pickler):
    def __init__(self, file: io.BytesIO, protocol: int):
        super().__init__(file, protocol)
        self.storages: dict[str, Storage] = {}

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Named):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Made):
            self.save_reduce(*obj.how)
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Storage):
            return None
        known = {id(storage): key for key, storage in self.storages.items()}
        key = known.get(id(obj), str(len(known)))
        self.storages[key] = obj
        part = () if obj.part is None else (obj.part,)
        return "storage", Named("torch", obj.kind), key, "cuda:0", obj.size, *part


def dumped(content: Any, protocol: int = 2) -> tuple[bytes, dict[str, Storage]]:
    """A pickle, and what it keeps outside."""
    pickler = _Pickler(file := io.BytesIO(), protocol)
    pickler.dump(content)
    return file.getvalue(), pickler.storages


def zipped(content: Any, protocol: int = 2, order: str = "little") -> bytes:
    """What PyTorch since 1.6 writes."""
    return zip_of(*dumped(content, protocol), order)


def zip_of(written: bytes, storages: dict[str, Storage] | None = None, order: str = "") -> bytes:
    """An archive with a pickle that was written already."""
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("w/data.pkl", written)
        if order:
            archive.writestr("w/byteorder", order)
        for key, storage in (storages or {}).items():
            archive.writestr(f"w/data/{key}", storage.content)
    return file.getvalue()


def legacy(content: Any, protocol: int = 2) -> bytes:
    """What it wrote before."""
    written, storages = dumped(content, protocol)
    sized = map(_sized, storages.values())
    return LEGACY_HEAD + written + pickle.dumps(list(storages), 2) + b"".join(sized)


def _sized(storage: Storage) -> bytes:
    return struct.pack("<q", storage.size) + storage.content


def tarred(arrays: dict[str, np.ndarray]) -> bytes:
    """What it wrote up to 0.1.10, of float32 tensors."""
    storages, views = (pickle.dumps(len(arrays), 2) for _ in range(2))
    for key, array in enumerate(arrays.values()):
        kept = Storage(array)
        storages += dumped((key + 100, "cpu", Named("torch", kept.kind)))[0] + _sized(kept)
        views += dumped((key, key + 100, Named("torch", "FloatTensor")))[0]
        strides = (step // array.itemsize for step in array.strides)
        views += struct.pack(f"<ii{2 * array.ndim + 1}q", array.ndim, 7, *array.shape, *strides, 0)
    names = {name: _Known(key) for key, name in enumerate(arrays)}
    members = {"sys_info": pickle.dumps({}, 2), "pickle": _known_pickled(names)}
    members |= {"tensors": views, "storages": storages + pickle.dumps([], 2)}
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w:") as archive:
        for name, member in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(member)
            archive.addfile(info, io.BytesIO(member))
    return file.getvalue()


class _Known(NamedTuple):
    key: int


def _known_pickled(names: dict[str, _Known]) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> int | None:
            return obj.key if isinstance(obj, _Known) else None

    Pickler(file := io.BytesIO(), 2).dump(names)
    return file.getvalue()
