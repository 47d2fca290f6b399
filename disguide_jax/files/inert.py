"""Pickles read without running any of them: stand-ins take the place of all that they name.

A pickle is a program that calls what it names. Here every name gives a stand-in, a class made
for this one file, which keeps what it would have been called with. So a pickle can call
nothing but the methods of `Object`, and change nothing but what was made for it: it gets hold
of no object of this process, looks no attribute up, and a stand-in's class takes no state.
That alone is what protects. `RUNNERS` protects nothing; a file that names them was made to
run something, and its user should hear of that rather than get weights from it.
"""

import pickle
import pickletools
import re
from collections.abc import Callable, Hashable, Iterable
from typing import BinaryIO

import numpy as np

MOST_NESTED = 10_000  # a million tuples in each other overflow Python's stack when hashed
RUNNERS = {
    # Modules, wherever in a dotted name.
    *("os", "posix", "nt", "sys", "subprocess", "_posixsubprocess", "commands", "pty"),
    *("runpy", "importlib", "imp", "shutil", "socket", "ctypes", "webbrowser", "pdb", "bdb"),
    # Functions.
    *("builtins.eval", "builtins.exec", "builtins.execfile", "builtins.compile"),
    *("builtins.open", "builtins.__import__", "builtins.setattr", "builtins.delattr"),
}
# builtins.getattr is none of them: methods and nested classes are saved by it. See `Attribute`.

TRUSTED = (
    "If you trust the file, load it in PyTorch and save the weights alone: "
    "torch.save(model.state_dict(), FILE)."
)


class Object:
    """Stands for what a pickle would have made, and keeps what it would have been made of."""

    __slots__ = ("args", "entries", "items", "state")
    path = ""  # what the pickle calls it, such as "torch._utils._rebuild_tensor_v2"

    args: tuple[object, ...]
    items: list[object]  # of what is a list or a set
    entries: dict[Hashable, object]  # of what is a dict
    state: object  # a dict of its attributes, or whatever else it asks for

    def __new__(cls, *args: object, **_kwargs: object) -> "Object":
        """What a pickle does to classes, and, as a call, to functions."""
        made = super().__new__(cls)
        made.args, made.items, made.entries, made.state = args, [], {}, None
        return made

    def __call__(self, *_args: object, **_kwargs: object) -> "Object":
        """What a pickle does to partial functions."""
        return self

    def __setstate__(self, state: object) -> None:
        self.state = state

    def append(self, item: object) -> None:
        """What a pickle does to lists."""
        self.items.append(item)

    def extend(self, items: Iterable[object]) -> None:
        """What a pickle does to lists by many items."""
        self.items.extend(items)

    def add(self, item: object) -> None:
        """What a pickle does to sets."""
        self.items.append(item)

    def __setitem__(self, key: Hashable, value: object) -> None:
        self.entries[key] = value


class Attribute(Object):
    """Stands for `getattr`, which finds nothing but another stand-in."""

    __slots__ = ()

    def __new__(cls, owner: object, name: str) -> type[Object]:  # type: ignore[misc]
        """A nested class or a method."""
        return _stand_in(f"{kind(owner)}.{name}")


def _stand_in(path: str, base: type[Object] = Object) -> type[Object]:
    return type("StandIn", (base,), {"path": path, "__slots__": ()})


def attributes(made: Object) -> dict[object, object]:
    """The attributes that an object was given, in its `__dict__` and in slots."""
    parts = made.state if isinstance(made.state, tuple) else (made.state,)
    return {k: v for part in parts if isinstance(part, dict) for k, v in part.items()}


def array(value: object) -> np.ndarray | None:
    """The array of numbers that a stand-in of NumPy's, of any version, would have become.

    Raises:
      Exception: its bytes are not those of its shape.
    """
    if not isinstance(value, Object) or not value.path.startswith("numpy."):
        return None
    match value.path.rpartition(".")[2], value.state, value.args:
        case "_reconstruct", (_, tuple(shape), dtype, by_columns, data), _:
            pass
        case "_frombuffer", None, (data, dtype, tuple(shape), order):
            by_columns = order == "F"
        case _:
            return None
    match dtype:
        case Object(path="numpy.dtype", args=(str(spec), *_), state=(_, order, *_)):
            content = _content(data)
            if content is None or not re.fullmatch(r"[biufc]\d+", spec):
                return None
        case _:
            return None
    native = np.dtype(spec)
    numbers = np.frombuffer(content, native.newbyteorder(">" if order == ">" else "<")).astype(
        native
    )
    return numbers.reshape(shape, order="F" if by_columns else "C")


def _content(data: object) -> bytes | None:
    """The bytes that a pickle spells in one of several ways."""
    match data:
        case bytes() | bytearray():
            return bytes(data)
        case str():  # Python 2
            return data.encode("latin1")
        case Object(path="_codecs.encode", args=(str(text), "latin1")):
            return text.encode("latin1")
    return None


def kind(value: object) -> str:
    """What a value is, by the name that its pickle gives it: int, argparse.Namespace."""
    stands = isinstance(value, Object) or (isinstance(value, type) and issubclass(value, Object))
    return value.path if stands else type(value).__name__  # type: ignore[attr-defined]


class Unpickler(pickle.Unpickler):
    """Builds plain containers, numbers, texts and `Object`."""

    def __init__(self, file: BinaryIO, stored: Callable[[object], object] | None = None):
        """Makes ready to read.

        Args:
          file: at the beginning of a pickle.
          stored: gives what the pickle says is kept elsewhere, by its identifier.
        """
        super().__init__(file, encoding="latin1")  # of bytes that Python 2 wrote as text
        self._file = file
        self._stored = stored
        self._stand_ins: dict[str, type[Object]] = {}

    def load_checked(self) -> object:
        """One pickle's content.

        Raises:
          Exception: it is damaged or malicious; damage can raise nearly any kind.
        """
        start = self._file.tell()
        nested = _nested_tuples(self._file)
        if nested > MOST_NESTED:
            raise ValueError(f"its pickle nests {nested:,} tuples")
        self._file.seek(start)
        return self.load()

    def find_class(self, module: str, name: str) -> type[Object]:
        """A stand-in for a global, dotted or not."""
        path = f"{'builtins' if module == '__builtin__' else module}.{name}"  # of Python 2
        if path in RUNNERS or not RUNNERS.isdisjoint(path.split(".")):
            raise ValueError(f"it asks for {path}, which is refused. {TRUSTED}")
        if path not in self._stand_ins:
            base = Attribute if path == "builtins.getattr" else Object
            self._stand_ins[path] = _stand_in(path, base)
        return self._stand_ins[path]

    def persistent_load(self, saved_id: object) -> object:
        """What is kept outside the pickle."""
        if self._stored is None:
            raise ValueError("its pickle keeps something elsewhere")
        return self._stored(saved_id)


def _nested_tuples(file: BinaryIO) -> int:
    """How deep the tuples are that the next pickle in a file holds, without making them.

    Raises:
      ValueError: it is damaged.
    """
    deepest = 0
    stack: list[int] = []  # how deep each object is; 0 is no tuple
    marks: list[int] = []
    numbered: dict[object, int] = {}
    for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
        name, before = opcode.name, opcode.stack_before
        if name == "MARK":
            marks.append(len(stack))
        elif name.startswith("EXT"):  # would be looked up in this process
            raise ValueError("its pickle needs extensions of the program that wrote it")
        elif name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
        elif name == "MEMOIZE":
            numbered[len(numbered)] = stack[-1]
        elif name.endswith("PUT"):
            # For a damaged index of 2^32 Python would write 64 GB of pointers.
            if isinstance(arg, int) and arg > count:
                raise ValueError(f"its pickle numbers an object {arg}")
            numbered[arg] = stack[-1]
        else:
            if pickletools.markobject in before:
                bottom = marks.pop() - before.index(pickletools.markobject)
            else:
                bottom = len(stack) - len(before)
            if bottom < 0:
                raise ValueError("its pickle takes more than it has made")
            depth = numbered[arg] if name.endswith("GET") else max(stack[bottom:], default=0)
            depth += "TUPLE" in name
            if not name.endswith(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "GET", "DUP", "PERSID")):
                depth = 0  # no tuple, whatever is in it
            stack[bottom:] = [depth] * len(opcode.stack_after)
            deepest = max(deepest, depth)
    return deepest
