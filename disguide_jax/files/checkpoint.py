"""Checkpoints that cost little, are believed only when whole, and are never spent twice.

A checkpoint is a directory named by the rounds done. It holds the networks, the optimisers
and the key, written by orbax, and a manifest with the size and the checksum of every file,
written last. The replay is not in it: each checkpoint adds to `replay/` only the entries that
were inserted since the one before, so that a buffer of a million images is never written
whole. Where the replay lies on the disk already, in a ledger or a transfer set, checkpoints
leave it there. The only module that knows orbax's names.

    checkpoints/
      000007800/manifest.json   progress, segments of the replay, files with checksums
      000007800/state/          orbax: every leaf but the buffer's images and answers
      replay/000007800.images   raw bytes of the entries inserted since the one before,
      replay/000007800.answers  oldest first
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Iterable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from disguide_jax.core import machines, mesh
from disguide_jax.core.replay import Replay
from disguide_jax.core.types import Array
from disguide_jax.errors import UserError
from disguide_jax.files import announced, atomic, segments, states
from disguide_jax.files.manifest import (
    DamagedError,
    Manifest,
    check_files,
    measure,
    read_manifest,
    write_manifest,
)

NUM_KEPT = 2
RING = ("replay.images", "replay.answers")  # leaves that go to replay/, not to orbax

log = logging.getLogger(__name__)


class Saved(Protocol):
    """What a checkpoint must find in the state of any training."""

    @property
    def round(self) -> Array:
        """Rounds done, []."""

    @property
    def queries(self) -> Array:
        """Images that the victim has answered, []."""

    @property
    def replay(self) -> Replay:
        """Entries that are saved as they come."""


class Checkpoints:
    """The newest two checkpoints of a run, written in the background. A context manager.

    Call `restore` once, then `save` as often as wanted.

    Args:
      directory: made if absent. One process at a time: see `workdir.lock`.
      replay_too: false where whoever restores a state fills its replay from elsewhere.

    Raises:
      UserError: the directory cannot be made or written.
    """

    def __init__(self, directory: pathlib.Path, *, replay_too: bool = True):
        self._directory, self._replay_too = directory.absolute(), replay_too
        self._kept: list[Manifest] = []  # newest last
        self._looked = False  # whether `restore` was called
        self._writing: concurrent.futures.Future[None] | None = None
        self._device_room: float | None = None
        try:
            (directory / "replay").mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()  # fails before anything is spent
        except OSError as error:
            raise UserError(f"{directory} cannot be written: {error.strerror}") from error
        self._orbax = _make_orbax()
        self._given_up = threading.Event()  # nobody waits for what is being written
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")

    def restore[State: Saved](self, template: State) -> tuple[State, dict[str, Any]] | None:
        """The newest whole checkpoint, bit for bit; None if there has never been one.

        A damaged one is named in a warning and passed over for the one before. A replay that was
        not saved is all zeros.

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
                manifests[name] = read_manifest(self._directory, name)
            except DamagedError as error:
                damaged[name] = error
        self._looked = True
        if machines.differing(", ".join(manifests)):
            raise UserError(f"{self._directory}: not all processes find the same checkpoints there")
        for name, manifest in manifests.items():
            try:
                states.check_fits(self._directory, manifest, template)
                check_files(self._directory, manifest)
                state = self._load(manifest, template)
            except DamagedError as error:
                damaged[name] = error
                continue
            for other, reason in damaged.items():
                path = self._directory / other
                log.warning("%s is damaged: %s. Continues from %s.", path, reason, name)
            older = [m for m in manifests.values() if m.round <= manifest.round]
            self._kept = older[:NUM_KEPT][::-1]
            self._clean(manifests.values())  # after a process that was killed
            machines.meet()
            return state, manifest.progress
        if damaged:
            lines = "".join(f"\n  {name}: {reason}" for name, reason in damaged.items())
            raise UserError(
                f"{self._directory} holds no checkpoint that can be used:{lines}\n"
                "The run stops rather than starting over and spending the budget twice. Bring "
                "the directory back from a copy, or choose another --workdir."
            )
        self._clean(())
        machines.meet()
        return None

    def save(self, state: Saved, progress: dict[str, Any]) -> None:
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
        if not self._looked:
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
        count = _num_inserted(last, queries, head, size, capacity) if self._replay_too else 0
        new = segments.Segment(f"{round_:09}", (head - count) % capacity, count)
        pieces = segments.cut(new, ring)
        leaves = states.flatten(state)
        manifest = Manifest(
            round=round_,
            queries=queries,
            head=head,
            progress=json.loads(json.dumps(progress, allow_nan=False)),  # a copy, too
            leaves={path: states.describe(leaf) for path, leaf in leaves.items()},
            key_impls={
                path: str(jax.random.key_impl(leaf))
                for path, leaf in leaves.items()
                if isinstance(leaf, Array) and states.is_key(leaf)
            },
            segments=segments.live((*(last.segments if last else ()), *pieces), capacity),
            files={},
        )
        if self._device_room is None:  # before any block lies there
            self._device_room = segments.spare_device_bytes(ring.images)
        ours = [piece for piece in pieces if segments.is_ours(piece, ring)]
        taken = {piece: segments.take(ring, piece, self._device_room) for piece in ours}
        small = _copy({path: leaf for path, leaf in leaves.items() if path not in RING})
        self._writing = self._thread.submit(self._write, manifest, taken, small)

    def wait(self) -> None:
        """Returns when everything given to `save` is on the disk.

        Raises:
          UserError: it could not be written; the checkpoint before is whole.
        """
        if self._finish():
            machines.meet()

    def _finish(self) -> bool:
        """Waits for what this process writes; returns whether it was anything."""
        writing, self._writing = self._writing, None
        if writing is None:
            return False
        writing.result()
        return True

    def close(self) -> None:
        """Waits, and lets go of the threads. Raises as `wait` does."""
        try:
            self._finish()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._given_up.set()
        try:
            self.close()
        except UserError as error:
            if kind is None:
                raise
            log.warning("%s", error)  # what is on its way to the user matters more

    def _write(
        self,
        manifest: Manifest,
        taken: dict[segments.Segment, segments.Blocks],
        small: dict[str, Array],
    ) -> None:
        """Writes a checkpoint, then deletes what none of those kept needs. In the thread."""
        whole = self._directory / manifest.name
        part = self._directory / f"{manifest.name}.part"
        num_bytes = sum(x.nbytes for blocks in taken.values() for block in blocks for x in block)
        num_bytes += sum(x.nbytes for x in small.values())
        inherited = self._kept[-1].files if self._kept else {}
        try:
            files: announced.Sealed = {}
            for piece, blocks in taken.items():
                files |= segments.write_segment(self._directory, piece, blocks)
            if not machines.is_first():
                announced.announce(self._directory, manifest.name, files)
                self._kept = [*self._kept, manifest][-NUM_KEPT:]
                return
            part.mkdir()
            _check_room(part, small)
            self._orbax.save(part / "state", {p: np.asarray(x) for p, x in small.items()})
            files |= announced.by_others(self._directory, manifest.name, self._given_up)
            for path in part.rglob("*"):
                atomic.sync(path)
                if path.is_file():
                    files[f"{manifest.name}/{path.relative_to(part)}"] = measure(path)
            older = segments.paths(manifest.segments) - files.keys()
            files |= {path: inherited[path] for path in older}
            manifest = dataclasses.replace(manifest, files=files)
            write_manifest(part / "manifest.json", manifest)
            for path in (part, self._directory / "replay"):
                atomic.sync(path)
            if whole.exists():  # damaged, or `restore` would have continued from it
                shutil.rmtree(whole)
            part.rename(whole)
            atomic.sync(self._directory)
            self._kept = [*self._kept, manifest][-NUM_KEPT:]
            self._delete_all_but_kept()
        except (OSError, ValueError) as error:  # the latter is tensorstore's
            self._clean(self._kept)
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
        self._clean(self._kept)

    def _clean(self, manifests: Iterable[Manifest]) -> None:
        """Deletes unfinished checkpoints, and segments that none of the manifests needs."""
        if not machines.is_first():
            return
        needed = {path for manifest in manifests for path in segments.paths(manifest.segments)}
        for path in self._directory.glob("*.part"):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self._directory / "replay").iterdir():
            if f"replay/{path.name}" not in needed:
                with contextlib.suppress(OSError):  # tried again next time
                    path.unlink()

    def _load[State: Saved](self, manifest: Manifest, template: State) -> State:
        try:
            small = self._orbax.restore(self._directory / manifest.name / "state")
        except Exception as error:  # whole files, yet orbax stumbles: another version of it?
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DamagedError(f"orbax cannot read state/: {reason}") from error
        leaves = {path: jnp.array(x) for path, x in small.items()}  # copies: NumPy's must
        for path, impl in manifest.key_impls.items():  # not be donated
            leaves[path] = jax.random.wrap_key_data(leaves[path], impl=impl)
        ring = segments.load_ring(self._directory, manifest.segments, template.replay)
        leaves |= zip(RING, ring, strict=True)
        flat = states.flatten(template)
        placed = [machines.place(leaves[path], like.sharding) for path, like in flat.items()]
        return machines.done(jax.tree.unflatten(jax.tree.structure(template), placed))


def bytes_on_disk(template: Saved, *, interval: int, budget: int, replay_too: bool = True) -> int:
    """What checkpoints need at most: those kept, and the one being written.

    Args:
      template: arrays or shapes of the state.
      interval: queries between two checkpoints.
      budget: queries of the whole run.
      replay_too: see `Checkpoints`.
    """
    sizes = {path: states.num_bytes(leaf) for path, leaf in states.flatten(template).items()}
    capacity = len(template.replay.images)
    per_entry = sum(sizes[path] for path in RING) // capacity
    # Two newer increments, and of the oldest one that is not all overwritten perhaps a whole.
    num_entries = min(capacity + 3 * min(interval, capacity), budget) if replay_too else 0
    small = sum(sizes.values()) - per_entry * capacity
    return (NUM_KEPT + 1) * (small + _overhead(len(sizes))) + num_entries * per_entry


def _num_inserted(last: Manifest | None, queries: int, head: int, size: int, capacity: int) -> int:
    """How many of the newest entries are not in the last checkpoint's segments."""
    if last is None:
        return size
    if queries - last.queries >= capacity:  # may have gone round once or more
        return size
    return (head - last.head) % capacity


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


def _make_orbax() -> ocp.Checkpointer:
    """What writes and reads trees, in this process and without asking others."""
    if machines.count() == 1:
        return ocp.PyTreeCheckpointer()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=machines.index(),
        active_processes={machines.index()},
        barrier_sync_key_prefix=f"process-{machines.index()}",
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


@jax.jit
def _copy(leaves: dict[str, Array]) -> dict[str, Array]:
    """Copies that outlive a donation of the originals; of keys, their numbers."""
    copies = {
        path: jnp.copy(jax.random.key_data(leaf) if states.is_key(leaf) else leaf)
        for path, leaf in leaves.items()
    }
    return mesh.whole(copies)
