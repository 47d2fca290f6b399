"""Entries of the replay on their way between the device's ring and a checkpoint's files.

A segment is what was inserted since the checkpoint before: raw bytes, oldest first, in
`replay/NAME.images` and `replay/NAME.answers`. Of a ring that is split over devices it is cut at
their borders, and each part is read off its own device. Entries go in blocks, of which the last
may be padded.
"""

import collections
import functools
import io
import math
import pathlib
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disguide_jax.core import mesh
from disguide_jax.core.replay import Replay
from disguide_jax.core.types import Array
from disguide_jax.files import atomic

BLOCK_BYTES = 2**25  # of images, taken from the device and put back in one piece

Blocks = collections.deque[tuple[Array, Array]]


class Segment(NamedTuple):
    """Entries that were inserted one after the other; they wrap around the buffer's end."""

    name: str  # of the checkpoint that wrote them
    first: int  # slot
    num: int


def live(segments: Iterable[Segment], capacity: int) -> tuple[Segment, ...]:
    """Those that still hold an entry which no later one has written over, oldest first."""
    needed, covered = [], 0
    for segment in reversed(tuple(segments)):
        if segment.num and covered < capacity:
            needed.append(segment)
            covered += segment.num
    return tuple(reversed(needed))


def cut(segment: Segment, ring: Replay) -> tuple[Segment, ...]:
    """A segment in pieces that each lie on one device, oldest first; itself on a single one."""
    capacity, part = len(ring.images), _part(ring.images)
    if part == capacity:
        return (segment,)
    pieces, first, left = [], segment.first, segment.num
    while left:
        num = min(left, part - first % part)
        pieces.append(Segment(f"{segment.name}-{first}", first, num))
        first, left = (first + num) % capacity, left - num
    return tuple(pieces)


def is_ours(segment: Segment, ring: Replay) -> bool:
    """Whether this process writes a piece: of what lies on several devices it is the first's."""
    shards, start = ring.images.addressable_shards, _start(ring.images, segment)
    return any(s.replica_id == 0 and (s.index[0].start or 0) == start for s in shards)


def paths(segments: Iterable[Segment]) -> set[str]:
    """Their files, as seen from the directory of the checkpoints."""
    return {path for segment in segments for path in _paths(segment)}


def _paths(segment: Segment) -> tuple[str, str]:
    return f"replay/{segment.name}.images", f"replay/{segment.name}.answers"


def spare_device_bytes(array: Array) -> float:
    """Half of what a device has never needed yet; inf where blocks lie in host memory."""
    found = [shard.device.memory_stats() or {} for shard in array.addressable_shards]
    if not all("bytes_limit" in stats for stats in found):
        return math.inf
    return min(stats["bytes_limit"] - stats["peak_bytes_in_use"] for stats in found) // 2


def take(ring: Replay, segment: Segment, room: float) -> Blocks:
    """Copies of the entries of a piece, in blocks of one size so that one program serves all.

    Slots are those of the whole ring, and wrap around its part. Blocks stay on their device until
    they are written, as far as `room`, in bytes, goes.
    """
    images, answers = (_shard(x, segment) for x in (ring.images, ring.answers))
    rows = _block_rows(images)
    blocks: Blocks = collections.deque()
    for start in range(0, segment.num, rows):
        with mesh.use_one(images):
            block = _take_block(images, answers, segment.first + start, num=rows)
        room -= sum(x.nbytes for x in block)
        blocks.append(block if room >= 0 else jax.device_get(block))
    return blocks


def write_segment(
    directory: pathlib.Path, segment: Segment, blocks: Blocks
) -> dict[str, tuple[int, int]]:
    """Writes the first `segment.num` rows of the blocks, and lets go of each.

    Returns:
      By path, as `paths` has them: bytes and CRC-32.
    """
    if not segment.num:
        return {}
    names = _paths(segment)
    sums, sizes, left = [0, 0], [0, 0], segment.num
    with (directory / names[0]).open("wb") as images, (directory / names[1]).open("wb") as answers:
        while blocks:
            block = blocks.popleft()
            num = min(left, len(block[0]))
            left -= num
            for i, file in enumerate((images, answers)):
                data = np.ascontiguousarray(block[i])[:num].view(np.uint8)
                file.write(data)
                sums[i], sizes[i] = zlib.crc32(data, sums[i]), sizes[i] + data.nbytes
        for file in (images, answers):
            atomic.flush(file)
    return {name: (sizes[i], sums[i]) for i, name in enumerate(names)}


def load_ring(
    directory: pathlib.Path, segments: Iterable[Segment], template: Replay
) -> tuple[Array, Array]:
    """The buffer's images and answers, whose shapes and dtypes `template` has.

    Block by block: there is no second copy of them.
    """
    images_like, answers_like = template.images, template.answers
    ring = (
        jnp.zeros(images_like.shape, images_like.dtype, device=images_like.sharding),
        jnp.zeros(answers_like.shape, answers_like.dtype, device=answers_like.sharding),
    )
    placed = images_like.sharding, answers_like.sharding
    put_block = jax.jit(_put_block, donate_argnums=(0, 1), out_shardings=placed)
    rows = _block_rows(template.images)
    for segment in segments:
        names = _paths(segment)
        with (
            open(directory / names[0], "rb") as images,
            open(directory / names[1], "rb") as answers,
        ):
            for start in range(0, segment.num, rows):
                num = min(rows, segment.num - start)
                block = tuple(
                    _read_rows(file, like, num, rows)
                    for file, like in zip((images, answers), ring, strict=True)
                )
                ring = put_block(*ring, block, segment.first + start, num)
    return ring


def _block_rows(images: Array) -> int:
    capacity, *shape = images.shape
    return max(1, min(capacity, BLOCK_BYTES // (math.prod(shape) * images.dtype.itemsize)))


@functools.partial(jax.jit, static_argnames="num")
def _take_block(images: Array, answers: Array, first: int, *, num: int) -> tuple[Array, Array]:
    slots = (first + jnp.arange(num, dtype=jnp.int32)) % len(images)

    def rows_of(ring: Array) -> Array:
        return ring.at[slots].get(mode="promise_in_bounds", unique_indices=True)

    return rows_of(images), rows_of(answers)


def _part(images: Array) -> int:
    """How many entries of a ring a device holds: all of them, or an equal part."""
    return images.sharding.shard_shape(images.shape)[0]


def _start(ring: Array, segment: Segment) -> int:
    """The first slot of the part of a ring that a piece lies in."""
    return segment.first // _part(ring) * _part(ring)


def _shard(ring: Array, segment: Segment) -> Array:
    """The part of the ring that a piece lies in, as an array on the one device that is asked."""
    start = _start(ring, segment)
    return next(s.data for s in ring.addressable_shards if (s.index[0].start or 0) == start)


def _put_block(
    images: Array, answers: Array, block: tuple[Array, Array], first: int, num: int
) -> tuple[Array, Array]:
    """Writes the first `num` rows of a block to consecutive slots."""
    rows = jnp.arange(len(block[0]), dtype=jnp.int32)
    slots = jnp.where(rows < num, (first + rows) % len(images), len(images))  # dropped

    def put(ring: Array, rows: Array) -> Array:
        return ring.at[slots].set(rows, mode="drop", unique_indices=True)

    return put(images, block[0]), put(answers, block[1])


def _read_rows(file: io.BufferedReader, like: Array, num: int, padded_to: int) -> np.ndarray:
    block = np.zeros((padded_to, *like.shape[1:]), like.dtype)
    file.readinto(block[:num].view(np.uint8))
    return block
