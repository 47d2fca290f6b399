"""Checkpoints that cost little, are believed only when whole, and are never spent twice.

A checkpoint is a directory named by the rounds done. It holds the networks, the optimisers
and the key, written by orbax, and a manifest with the size and the checksum of every file,
written last. The replay is not in it: each checkpoint adds to `replay/` only the entries that
were inserted since the one before, so that a buffer of a million images is never written
whole. The only module that knows orbax's names.

    checkpoints/
      000007800/manifest.json   progress, segments of the replay, files with checksums
      000007800/state/          orbax: every leaf but the buffer's images and answers
      replay/000007800.images   raw bytes of the entries inserted since the one before,
      replay/000007800.answers  oldest first
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import json
import logging
import math
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from disguide_jax.errors import UserError
from disguide_jax.replay import Replay
from disguide_jax.state import Array, TrainState

NUM_KEPT = 2
RING = ("replay.images", "replay.answers")  # leaves that go to replay/, not to orbax
BLOCK_BYTES = 2**25  # of images, taken from the device and put back in one piece

log = logging.getLogger(__name__)


class Segment(NamedTuple):
    """Entries that were inserted one after the other; they wrap around the buffer's end."""

    name: str  # of the checkpoint that wrote them
    first: int  # slot
    count: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a checkpoint says about itself."""

    round: int
    queries: int
    head: int
    progress: dict[str, Any]
    leaves: dict[str, str]  # of the whole state: path to dtype[shape]
    key_impls: dict[str, str]  # path of a PRNG key to its implementation
    segments: tuple[Segment, ...]  # oldest first: later ones write over earlier ones
    files: dict[str, tuple[int, int]]  # path in the directory to bytes and CRC-32

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.round:09}"


class DamagedError(Exception):
    """A checkpoint that cannot be used; says which file and what is wrong with it."""


class Checkpoints:
    """The newest two checkpoints of a run, written in the background. A context manager.

    Call `restore` once, then `save` as often as wanted.

    Args:
      directory: made if absent. One process at a time: see `lock`.

    Raises:
      UserError: the directory cannot be made or written.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory.absolute()
        self._kept: list[Manifest] | None = None  # newest last; None before `restore`
        self._writing: concurrent.futures.Future | None = None
        self._device_room: int | None = None
        try:
            (directory / "replay").mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()  # fails before anything is spent
        except OSError as error:
            raise UserError(f"{directory} cannot be written: {error.strerror}") from error
        self._orbax = ocp.PyTreeCheckpointer()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")

    def restore(self, template: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest whole checkpoint, bit for bit; None if there has never been one.

        A damaged one is named in a warning and passed over for the one before.

        Args:
          template: arrays or shapes of the state.

        Raises:
          UserError: there are checkpoints and none is whole, so that starting over would spend
            the budget twice; or they are those of another state.
        """
        found = (path.name for path in self._directory.iterdir() if path.name.isdigit())
        manifests: dict[str, Manifest] = {}  # newest first
        damaged: dict[str, DamagedError] = {}
        for name in sorted(found, key=int, reverse=True):
            try:
                manifests[name] = _read_manifest(self._directory, name)
            except DamagedError as error:
                damaged[name] = error
        self._kept = []
        for name, manifest in manifests.items():
            try:
                _check_fits(self._directory, manifest, template)
                _check_files(self._directory, manifest)
                state = self._load(manifest, template)
            except DamagedError as error:
                damaged[name] = error
                continue
            for other, error in damaged.items():
                path = self._directory / other
                log.warning("%s is damaged: %s. Continues from %s.", path, error, name)
            older = [m for m in manifests.values() if m.round <= manifest.round]
            self._kept = older[:NUM_KEPT][::-1]
            _clean(self._directory, manifests.values())  # after a process that was killed
            return state, manifest.progress
        if damaged:
            lines = "".join(f"\n  {name}: {error}" for name, error in damaged.items())
            raise UserError(
                f"{self._directory} holds no checkpoint that can be used:{lines}\n"
                "The run stops rather than starting over and spending the budget twice. Bring "
                "the directory back from a copy, or choose another --workdir."
            )
        _clean(self._directory, ())
        return None

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Starts to write a checkpoint; `state` may be donated as soon as this returns.

        Copies on the device what is to be written and leaves the rest to a thread. States must
        come in the order of one run, each entry of the replay having cost at least one query;
        one that is saved already is not saved again.

        Args:
          state: of the run that `restore` returned or, if it returned None, any.
          progress: a small dict for JSON, saved with the state.

        Raises:
          UserError: the checkpoint before could not be written; the one before that is whole.
          ValueError: `restore` was not called, or the state is older than one that is saved.
        """
        if self._kept is None:
            raise ValueError("call restore before save: there may be checkpoints already")
        self.wait()
        ring = state.replay
        scalars = (state.round, state.queries, ring.head, ring.size)
        round_, queries, head, size = (int(x) for x in jax.device_get(scalars))
        last = self._kept[-1] if self._kept else None
        if last and round_ <= last.round:
            if round_ < last.round:
                raise ValueError(f"round {round_}: older than {last.name}, which is saved")
            return
        capacity = len(ring.images)
        count = _num_inserted(last, queries, head, size, capacity)
        new = Segment(f"{round_:09}", (head - count) % capacity, count)
        leaves = _flatten(state)
        manifest = Manifest(
            round=round_,
            queries=queries,
            head=head,
            progress=json.loads(json.dumps(progress, allow_nan=False)),  # a copy, too
            leaves={path: _describe(leaf) for path, leaf in leaves.items()},
            key_impls={
                path: str(jax.random.key_impl(leaf))
                for path, leaf in leaves.items()
                if _is_key(leaf)
            },
            segments=_live((*(last.segments if last else ()), new), capacity),
            files={},
        )
        blocks = self._take(ring, new)
        small = _copy({path: leaf for path, leaf in leaves.items() if path not in RING})
        self._writing = self._thread.submit(self._write, manifest, new, blocks, small)

    def wait(self) -> None:
        """Returns when everything given to `save` is on the disk.

        Raises:
          UserError: it could not be written; the checkpoint before is whole.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Waits, and lets go of the threads. Raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except UserError as error:
            if kind is None:
                raise
            log.warning("%s", error)  # what is on its way to the user matters more

    def _take(self, ring: Replay, segment: Segment) -> collections.deque:
        """Copies of a segment's entries, in blocks of one size so that one program serves all.

        They stay on the device until they are written, as far as there is room.
        """
        if self._device_room is None:  # before any block lies there
            self._device_room = _spare_device_bytes(ring.images)
        rows, room = _block_rows(ring.images), self._device_room
        blocks = collections.deque()
        for start in range(0, segment.count, rows):
            block = _take_block(ring.images, ring.answers, segment.first + start, num=rows)
            room -= sum(x.nbytes for x in block)
            blocks.append(block if room >= 0 else jax.device_get(block))
        return blocks

    def _write(
        self, manifest: Manifest, new: Segment, blocks: collections.deque, small: dict[str, Array]
    ) -> None:
        """Writes a checkpoint, then deletes what none of those kept needs. In the thread."""
        whole = self._directory / manifest.name
        part = self._directory / f"{manifest.name}.part"
        num_bytes = sum(x.nbytes for block in blocks for x in block)
        num_bytes += sum(x.nbytes for x in small.values())
        inherited = self._kept[-1].files if self._kept else {}
        try:
            part.mkdir()
            files = _write_segment(self._directory, new, blocks)
            files |= {path: inherited[path] for path in _segment_files(manifest) - files.keys()}
            _check_room(part, small)
            self._orbax.save(part / "state", {p: np.asarray(x) for p, x in small.items()})
            for path in part.rglob("*"):
                _sync(path)
                if path.is_file():
                    files[f"{manifest.name}/{path.relative_to(part)}"] = _measure(path)
            manifest = dataclasses.replace(manifest, files=files)
            _write_manifest(part / "manifest.json", manifest)
            for path in (part, self._directory / "replay"):
                _sync(path)
            if whole.exists():  # damaged, or `restore` would have continued from it
                shutil.rmtree(whole)
            part.rename(whole)
            _sync(self._directory)
            self._kept = [*self._kept, manifest][-NUM_KEPT:]
            self._delete_all_but_kept()
        except (OSError, ValueError) as error:  # the latter is tensorstore's
            _clean(self._directory, self._kept)
            reason = getattr(error, "strerror", None) or error
            before = f"The one before, {self._kept[-1].name}, stays usable. " if self._kept else ""
            raise UserError(
                f"{self._directory}: the checkpoint of round {manifest.round:,} "
                f"({num_bytes:,} bytes) cannot be written: {reason}. {before}"
                "Make room there, then run the same command again."
            ) from error

    def _delete_all_but_kept(self) -> None:
        names = {manifest.name for manifest in self._kept}
        for path in self._directory.iterdir():
            if path.name.isdigit() and path.name not in names:
                # In one step, so that half of one is never found; `_clean` does the rest.
                path.rename(path.with_suffix(".part"))
        _clean(self._directory, self._kept)

    def _load(self, manifest: Manifest, template: TrainState) -> TrainState:
        try:
            small = self._orbax.restore(self._directory / manifest.name / "state")
        except Exception as error:  # whole files, yet orbax stumbles: another version of it?
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DamagedError(f"orbax cannot read state/: {reason}") from error
        leaves = {path: jnp.array(x) for path, x in small.items()}  # copies: NumPy's must
        for path, impl in manifest.key_impls.items():  # not be donated
            leaves[path] = jax.random.wrap_key_data(leaves[path], impl=impl)
        leaves |= zip(RING, _load_ring(self._directory, manifest, template.replay), strict=True)
        treedef = jax.tree.structure(template)
        return jax.tree.unflatten(treedef, [leaves[path] for path in _flatten(template)])


def bytes_on_disk(template: TrainState, *, interval: int, budget: int) -> int:
    """What checkpoints need at most: those kept, and the one being written.

    Args:
      template: arrays or shapes of the state.
      interval: queries between two checkpoints.
      budget: queries of the whole run.
    """
    sizes = {path: _num_bytes(leaf) for path, leaf in _flatten(template).items()}
    capacity = len(template.replay.images)
    per_entry = sum(sizes[path] for path in RING) // capacity
    # Two newer increments, and of the oldest one that is not all overwritten perhaps a whole.
    num_entries = min(capacity + 3 * min(interval, capacity), budget)
    small = sum(sizes.values()) - per_entry * capacity
    return (NUM_KEPT + 1) * (small + _overhead(len(sizes))) + num_entries * per_entry


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out of a workdir. It ends with the process, however that ends.

    Raises:
      UserError: another process holds it, or the workdir cannot be written.
    """
    try:
        file = (workdir / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"{workdir} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"{workdir} is in use by another process (pid {holder}); "
                "wait for it, or choose another --workdir"
            ) from error
        except OSError as error:
            raise UserError(f"{workdir} cannot be locked: {error.strerror}") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _num_inserted(last: Manifest | None, queries: int, head: int, size: int, capacity: int) -> int:
    """How many of the newest entries are not in the last checkpoint's segments."""
    if last is None:
        return size
    if queries - last.queries >= capacity:  # may have gone round once or more
        return size
    return (head - last.head) % capacity


def _live(segments: Iterable[Segment], capacity: int) -> tuple[Segment, ...]:
    """Those that still hold an entry which no later one has written over, oldest first."""
    live, covered = [], 0
    for segment in reversed(tuple(segments)):
        if segment.count and covered < capacity:
            live.append(segment)
            covered += segment.count
    return tuple(reversed(live))


def _overhead(num_leaves: int) -> int:
    """Bytes of a checkpoint that are no leaf's: the manifest, orbax's own files."""
    return 2**16 + 2**10 * num_leaves


def _check_room(folder: pathlib.Path, small: dict[str, Array]) -> None:
    """Raises OSError if disk or quota have no room for what orbax is about to write.

    Orbax would find out as well, but prints pages of tracebacks when it does.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    num_bytes = sum(x.nbytes for x in small.values()) + _overhead(len(small))
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, num_bytes)


def _clean(directory: pathlib.Path, manifests: Iterable[Manifest]) -> None:
    """Deletes unfinished checkpoints, and segments that none of the manifests needs."""
    needed = {path for manifest in manifests for path in _segment_files(manifest)}
    for path in directory.glob("*.part"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (directory / "replay").iterdir():
        if f"replay/{path.name}" not in needed:
            with contextlib.suppress(OSError):  # tried again next time
                path.unlink()


def _segment_files(manifest: Manifest) -> set[str]:
    kinds = ("images", "answers")
    return {f"replay/{segment.name}.{kind}" for segment in manifest.segments for kind in kinds}


def _flatten(state: TrainState) -> dict[str, Any]:
    """Leaves by path, such as clones.params.fc.kernel, in the order of jax.tree.leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _num_bytes(leaf: Any) -> int:
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


@jax.jit
def _copy(leaves: dict[str, Array]) -> dict[str, Array]:
    """Copies that outlive a donation of the originals; of keys, their numbers."""
    return {
        path: jnp.copy(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for path, leaf in leaves.items()
    }


def _spare_device_bytes(array: Array) -> float:
    """Half of what the device has never needed yet; inf where blocks lie in host memory."""
    (device,) = array.devices()
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return math.inf
    return (stats["bytes_limit"] - stats["peak_bytes_in_use"]) // 2


def _block_rows(images: Any) -> int:
    capacity = images.shape[0]
    return max(1, min(capacity, BLOCK_BYTES * capacity // _num_bytes(images)))


@functools.partial(jax.jit, static_argnames="num")
def _take_block(images: Array, answers: Array, first: int, *, num: int) -> tuple[Array, Array]:
    slots = (first + jnp.arange(num, dtype=jnp.int32)) % len(images)
    gather = {"unique_indices": True, "mode": "promise_in_bounds"}
    return images.at[slots].get(**gather), answers.at[slots].get(**gather)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _put_block(
    images: Array, answers: Array, block: tuple[Array, Array], first: int, num: int
) -> tuple[Array, Array]:
    """Writes the first `num` rows of a block to consecutive slots."""
    rows = jnp.arange(len(block[0]), dtype=jnp.int32)
    slots = jnp.where(rows < num, (first + rows) % len(images), len(images))  # dropped
    scatter = {"unique_indices": True, "mode": "drop"}
    return images.at[slots].set(block[0], **scatter), answers.at[slots].set(block[1], **scatter)


def _load_ring(directory: pathlib.Path, manifest: Manifest, template: Replay) -> tuple:
    """The buffer's images and answers, block by block: there is no second copy of them."""
    ring = tuple(jnp.zeros(x.shape, x.dtype) for x in (template.images, template.answers))
    rows = _block_rows(template.images)
    for segment in manifest.segments:
        path = directory / "replay" / segment.name
        with open(f"{path}.images", "rb") as images, open(f"{path}.answers", "rb") as answers:
            for start in range(0, segment.count, rows):
                num = min(rows, segment.count - start)
                block = tuple(
                    _read_rows(file, like, num, rows)
                    for file, like in zip((images, answers), ring, strict=True)
                )
                ring = _put_block(*ring, block, segment.first + start, num)
    return ring


def _read_rows(file: BinaryIO, like: Array, num: int, padded_to: int) -> np.ndarray:
    block = np.zeros((padded_to, *like.shape[1:]), like.dtype)
    file.readinto(block[:num].view(np.uint8))
    return block


def _write_segment(
    directory: pathlib.Path, segment: Segment, blocks: collections.deque
) -> dict[str, tuple[int, int]]:
    """Writes the first `segment.count` rows of the blocks, and lets go of each."""
    if not segment.count:
        return {}
    names = [f"replay/{segment.name}.{kind}" for kind in ("images", "answers")]
    sums, sizes, left = [0, 0], [0, 0], segment.count
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
            file.flush()
            os.fsync(file.fileno())
    return {name: (sizes[i], sums[i]) for i, name in enumerate(names)}


def _measure(path: pathlib.Path) -> tuple[int, int]:
    """The bytes of a file and their CRC-32."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(2**24):
            checksum = zlib.crc32(chunk, checksum)
        return file.tell(), checksum


def _sync(path: pathlib.Path) -> None:
    """Brings a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_manifest(path: pathlib.Path, manifest: Manifest) -> None:
    body = dataclasses.asdict(manifest)
    path.write_text(json.dumps({"crc32": _body_checksum(body), "checkpoint": body}, indent=1))
    _sync(path)


def _read_manifest(directory: pathlib.Path, name: str) -> Manifest:
    path = directory / name / "manifest.json"
    try:
        content = json.loads(path.read_bytes())
        body = content["checkpoint"]
        if content["crc32"] != _body_checksum(body):
            raise ValueError("its checksum does not match")
        segments = tuple(Segment(*segment) for segment in body["segments"])
        files = {file: tuple(sealed) for file, sealed in body["files"].items()}
        return Manifest(**body | {"segments": segments, "files": files})
    except FileNotFoundError as error:
        raise DamagedError(f"{name}/manifest.json is missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{name}/manifest.json cannot be read: {error}") from error


def _body_checksum(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def _check_fits(directory: pathlib.Path, manifest: Manifest, template: TrainState) -> None:
    """Raises UserError where the state differs: no other checkpoint would fit either."""
    here = {path: _describe(leaf) for path, leaf in _flatten(template).items()}
    there = manifest.leaves
    differing = [path for path in here | there if here.get(path) != there.get(path)]
    if differing:
        lines = "".join(
            f"\n  {path}: {there.get(path, 'absent')} there, {here.get(path, 'absent')} here"
            for path in differing[:3]
        )
        more = f"\n  and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"{directory / manifest.name} is the checkpoint of another configuration:{lines}"
            f"{more}\nUse the configuration that it was made with, or another --workdir."
        )


def _check_files(directory: pathlib.Path, manifest: Manifest) -> None:
    def problem(path: str) -> str | None:
        expected_size, expected_checksum = manifest.files[path]
        try:
            size, checksum = _measure(directory / path)
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
        if size != expected_size:
            return f"{path} has {size:,} bytes instead of {expected_size:,}"
        if checksum != expected_checksum:
            return f"{path} is not what was written: its checksum does not match"
        return None

    with concurrent.futures.ThreadPoolExecutor() as pool:
        problems = [found for found in pool.map(problem, manifest.files) if found]
    if problems:
        raise DamagedError("; ".join(problems))
