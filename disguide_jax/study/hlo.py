"""Reads the text of a program that XLA has compiled: what its loop moves and convolves.

Bytes are those that each operation of the schedule reads of its operands and writes of its
results, a fusion being one operation. What a cache keeps is not taken off, and what an operation
reads twice not added.
"""

import collections
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "s4", "u4"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
}
FREE = {
    *("parameter", "get-tuple-element", "bitcast", "constant", "tuple", "after-all", "iota"),
    *("partition-id", "replica-id", "opt-barrier"),
}
SLICES = {"slice", "dynamic-slice", "gather"}  # read as much as they return
UPDATES = {"scatter", "dynamic-update-slice"}  # write in place: XLA puts a copy where they cannot
CONVOLUTION = "__cudnn$conv"
AXES = {"b": "N", "f": "C", "0": "H", "1": "W", "2": "D"}

HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
OPERATION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)$")


class Operation(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str  # of what it returns, as written: "bf16[256,32,32,64]{3,2,1,0}"
    kind: str  # "fusion", "custom-call", ...
    operands: tuple[str, ...]  # their names
    attributes: str  # whatever follows
    is_root: bool

    def called(self, attribute: str) -> str:
        """The name of a computation that it calls as its `body`, `calls`, ...; "" of none."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    @property
    def sort(self) -> str:
        """What it does, in XLA's words: a library's function, or what was fused."""
        if self.kind == "custom-call":
            return re.findall(r'custom_call_target="([^"]+)"', self.attributes)[0]
        if self.kind == "fusion":
            return re.sub(r"(\.\d+|\.clone)+$", "", self.name)
        return self.kind


class Moved(NamedTuple):
    """What all operations of a sort do in one round."""

    times: int
    num_bytes: int  # read and written


Computation = dict[str, Operation]
Module = dict[str, Computation]


class Loop:
    """The body of the costliest loop in a program: one round of a call that plays many."""

    def __init__(self, text: str):
        """Reads a program's text.

        Args:
          text: `jax.stages.Compiled.as_text()`.

        Raises:
          ValueError: it has no loop.
        """
        self._module, entry = parse(text)
        bodies = [op.called("body") for op in self._module[entry].values() if op.kind == "while"]
        if not bodies:
            raise ValueError("the program has no loop")
        self._body = max(bodies, key=lambda body: sum(m.num_bytes for m in self._count(body)[1]))

    def traffic(self) -> dict[str, Moved]:
        """What is moved, by sort of operation, the most first."""
        moved: dict[str, Moved] = {}
        for op, new in zip(*self._count(self._body), strict=True):
            count, num_bytes = moved.get(op.sort, (0, 0))
            moved[op.sort] = Moved(count + new.times, num_bytes + new.num_bytes)
        return dict(sorted(moved.items(), key=lambda item: -item[1].num_bytes))

    def convolutions(self) -> dict[str, int]:
        """How many there are of each type and layout of images, such as "bf16 NHWC"."""
        counts: collections.Counter[str] = collections.Counter()
        for op, moved in zip(*self._count(self._body), strict=True):
            labels = re.search(r"dim_labels=(\w+)_", op.attributes)
            if labels and (op.kind == "convolution" or op.sort.startswith(CONVOLUTION)):
                dtype = re.search(r"([a-z]\w*)\[", op.shape)
                layout = "".join(AXES[axis] for axis in labels[1])
                counts[f"{dtype[1] if dtype else '?'} {layout}"] += moved.times
        return dict(counts.most_common())

    def _count(self, name: str) -> tuple[list[Operation], list[Moved]]:
        """The operations of a computation and of those that it calls, with what each moves."""
        ops, moved = [], []
        for op in self._module.get(name, {}).values():
            inner, times = self._inner(op)
            if inner:
                ops += inner[0]
                moved += [Moved(times * m.times, times * m.num_bytes) for m in inner[1]]
            elif op.kind not in FREE:
                ops.append(op)
                moved.append(Moved(1, self._bytes(op, self._module[name])))
        return ops, moved

    def _inner(self, op: Operation) -> tuple[tuple[list[Operation], list[Moved]] | None, int]:
        """What an operation that is no more than others does, and how often; once if unknown."""
        if op.kind == "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', op.attributes)
            return self._count(op.called("body")), int(trips[1]) if trips else 1
        if op.kind == "conditional":
            names = re.search(r"branch_computations=\{(.*?)\}", op.attributes)
            branches = names[1].replace("%", "").split(", ") if names else []
            branches += [op.called(f"{answer}_computation") for answer in ("true", "false")]
            counts = [self._count(branch) for branch in branches]
            return max(counts, key=lambda count: sum(m.num_bytes for m in count[1])), 1
        if op.kind == "call":
            return self._count(op.called("to_apply")), 1
        return None, 1

    def _bytes(self, op: Operation, around: Computation) -> int:
        """What one operation reads and writes."""
        if op.kind == "fusion":
            fused = self._module[op.called("calls")]
            root = next(inner for inner in fused.values() if inner.is_root)
            parameters = (inner for inner in fused.values() if inner.kind == "parameter")
            read = (_read(p.name, fused, _users(p.name, fused)) for p in parameters)
            return sum(read) + _written(root, fused)
        read = (_read(name, around, (op,)) for name in dict.fromkeys(op.operands))
        return sum(read) + _written(op, around)


def parse(text: str) -> tuple[Module, str]:
    """All computations of a program by their names, and the name of the one it begins with."""
    module: Module = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := HEAD.match(line):
            current = module.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and (op := OPERATION.match(line)):
            root, name, shape, kind, arguments, attributes = op.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
            current[name] = Operation(name, shape, kind, operands, attributes, bool(root))
    return module, entry


def size(shape: str) -> int:
    """The bytes of an array, or of all arrays of a tuple, of a shape as XLA writes it."""
    arrays = re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape)
    return sum(
        BYTES.get(dtype, 1) * math.prod(int(d) for d in dims.split(",") if d)
        for dtype, dims in arrays
    )


def _read(name: str, ops: Computation, users: Iterable[Operation]) -> int:
    """The bytes of an array that operations read: of slices, no more than those."""
    parts = 0
    for user in users:
        if user.kind == "bitcast":
            parts += _read(user.name, ops, _users(user.name, ops))
        elif user.kind in SLICES and name == user.operands[0]:
            parts += size(user.shape)
        elif not (user.kind in UPDATES and name in _targets(user)):
            return size(ops[name].shape)
    return min(parts, size(ops[name].shape))


def _users(name: str, ops: Computation) -> list[Operation]:
    return [op for op in ops.values() if name in op.operands]


def _written(op: Operation, ops: Computation) -> int:
    """The bytes of what is returned: of an array that is updated, no more than is new."""
    if op.kind == "tuple":
        return sum(_written(ops[name], ops) for name in op.operands)
    if op.kind == "bitcast" and op.operands[0] in ops:
        return _written(ops[op.operands[0]], ops)
    if op.kind in UPDATES:
        first = 1 if op.kind != "scatter" else len(_targets(op)) + 1
        return sum(size(ops[name].shape) for name in op.operands[first : first + len(_targets(op))])
    return size(op.shape)


def _targets(update: Operation) -> tuple[str, ...]:
    """The arrays that are updated in place."""
    return update.operands[: (len(update.operands) - 1) // 2 if update.kind == "scatter" else 1]
