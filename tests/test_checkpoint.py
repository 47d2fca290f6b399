"""Checkpoints: what is saved comes back bit for bit, whatever is done to the process or the disk.

The state is made by hand: small leaves of every kind, and a ring of a few entries.
"""

import contextlib
import errno
import logging
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import subprocess
import time
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disguide_jax.core import learn, pixels, replay
from disguide_jax.core.types import TrainState, Variables
from disguide_jax.errors import UserError
from disguide_jax.files import atomic, checkpoint, segments
from disguide_jax.files.checkpoint import Checkpoints
from disguide_jax.files.workdir import lock

CAPACITY = 7
BATCH = 2
IMAGE_BYTES = 2 * 2 * 3
ENTRY_BYTES = IMAGE_BYTES + 5 * 4


def make_state(capacity=CAPACITY, dtype=jnp.uint8, labels=False, width=3):
    """Leaves of several types and ranks, NamedTuples, empty dicts, optax states, a key."""
    params = {"fc": {"kernel": jnp.arange(2.0 * width).reshape(2, width), "bias": jnp.ones(2)}}
    generator = Variables({"l1": jnp.ones((width,))}, {})
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(lambda _: 0.1, momentum=0.9))
    clones = Variables(params, {"norm": {"mean": jnp.zeros((2, width), jnp.bfloat16)}})
    answers = ((BATCH,), jnp.int32) if labels else ((BATCH, 5), jnp.float32)
    return TrainState(
        round=jnp.zeros((), jnp.int32),
        queries=jnp.zeros((), jnp.int32),
        answered=jnp.zeros((5,), jnp.int32),
        key=jax.random.key(3, impl="rbg"),
        generator=learn.start(generator, optax.adam(1e-3)),
        clones=learn.start(clones, tx),
        replay=replay.init(
            capacity,
            jax.ShapeDtypeStruct((BATCH, 2, 2, 3), dtype),
            jax.ShapeDtypeStruct(*answers),
        ),
    )


@jax.jit
def play_round(state):
    """Changes what a round changes; no two rounds insert the same."""
    ring = state.replay
    draw = jax.random.fold_in(state.key, state.round)
    images = jax.random.uniform(draw, (BATCH, 2, 2, 3), minval=-1.0)
    answers = jnp.full((BATCH, *ring.answers.shape[1:]), state.round)
    return state.replace(
        round=state.round + 1,
        queries=state.queries + BATCH,
        clones=jax.tree.map(lambda x: x + x.dtype.type(1), state.clones),
        replay=replay.insert(ring, pixels.encode(images, ring.images.dtype), answers),
    )


def play(state, num_rounds=1):
    for _ in range(num_rounds):
        state = play_round(state)
    return state


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert jax.random.key_impl(found.key) == jax.random.key_impl(expected.key)
    pair = (state.replace(key=jax.random.key_data(state.key)) for state in (found, expected))
    for leaf, other in zip(*map(jax.tree.leaves, pair), strict=True):
        assert leaf.dtype == other.dtype
        np.testing.assert_array_equal(leaf, other)


def restore(directory, template=None):
    with Checkpoints(directory) as saved:
        return saved.restore(make_state() if template is None else template)


def save_some(directory, rounds=(2, 4, 6)):
    """Saves the states after so many rounds; returns them by the names of their checkpoints."""
    states, state = {}, make_state()
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.restore(state) is None
        for round_ in rounds:
            state = play(state, round_ - int(state.round))
            checkpoints.save(state, {"round": round_})
            states[f"{int(state.round):09}"] = state
    return states


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function that puts the checkpoints of `save_some` into a directory."""
    original = tmp_path_factory.mktemp("saved")
    states = save_some(original)

    def put(directory):
        shutil.copytree(original, directory, dirs_exist_ok=True)
        return states

    return put


def names(directory):
    return sorted(path.name for path in directory.iterdir() if path.name != "replay")


# What comes back


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    state = play(make_state(), 5)
    progress = {"best": 0.1 + 0.2, "queries_to": {"0.5": None}, "log_bytes": 12}
    directory = tmp_path / "new" / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.restore(jax.eval_shape(make_state)) is None
        checkpoints.save(state, progress)
        progress["best"] = 1.0  # the run goes on
    found, found_progress = restore(directory, jax.eval_shape(make_state))
    assert_same(found, state)
    assert found_progress == progress | {"best": 0.1 + 0.2}
    assert_same(play(found), play(state))


@pytest.mark.parametrize(("dtype", "labels"), [("bfloat16", True), ("float32", False)])
def test_every_kind_of_ring_comes_back_round_its_end(tmp_path, monkeypatch, dtype, labels):
    monkeypatch.setattr(segments, "BLOCK_BYTES", 3 * IMAGE_BYTES * jnp.dtype(dtype).itemsize)
    state = make_state(dtype=jnp.dtype(dtype), labels=labels)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(state)
        for num_rounds in (3, 2):
            state = play(state, num_rounds)
            checkpoints.save(state, {})
    assert_same(restore(tmp_path, state)[0], state)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    capacity=st.sampled_from([2, 5, 7]),
    block_rows=st.sampled_from([1, 3]),
    steps=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=6),
)
def test_any_sequence_of_rounds_saves_and_restarts_gives_the_state_back(
    tmp_path_factory, capacity, block_rows, steps
):
    directory = tmp_path_factory.mktemp("checkpoints")
    state = template = make_state(capacity)
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(segments, "BLOCK_BYTES", block_rows * IMAGE_BYTES)
        checkpoints = stack.enter_context(Checkpoints(directory))
        checkpoints.restore(template)
        for num_rounds, restarts in steps:
            state = play(state, num_rounds)
            checkpoints.save(state, {"round": int(state.round)})
            if restarts:
                checkpoints.close()
                checkpoints = stack.enter_context(Checkpoints(directory))
                found, progress = checkpoints.restore(template)
                assert_same(found, state)
                assert progress == {"round": int(state.round)}
                state = found
        checkpoints.wait()
        assert_same(restore(directory, template)[0], state)
    interval = BATCH * max(num_rounds for num_rounds, _ in steps)
    on_disk = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    assert on_disk <= checkpoint.bytes_on_disk(
        template, interval=interval, budget=int(state.queries)
    )


def test_the_next_round_may_take_the_buffers_at_once(tmp_path):
    donating_round = jax.jit(play_round, donate_argnums=0)
    state, expected = make_state(capacity=5000), make_state(capacity=5000)
    state, expected = donating_round(state), play(expected)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(expected)
        checkpoints.save(state, {})
        for _ in range(20):
            state = donating_round(state)
    found = restore(tmp_path, expected)[0]
    assert_same(found, expected)
    assert_same(donating_round(found), play(expected))


def test_blocks_beyond_the_room_on_the_device_wait_on_the_host(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "spare_device_bytes", lambda _: 3 * ENTRY_BYTES)
    monkeypatch.setattr(segments, "BLOCK_BYTES", IMAGE_BYTES)
    state = play(make_state(), 3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(state)
        blocks = segments.take(state.replay, segments.Segment("", 0, 6), 3 * ENTRY_BYTES)
        on_host = [isinstance(images, np.ndarray) for images, _ in blocks]
        assert on_host == [False, False, False, True, True, True]
        checkpoints.save(state, {})
    assert_same(restore(tmp_path)[0], state)


def test_double_precision_comes_back_as_such(tmp_path):
    with jax.enable_x64(True):
        state = make_state()
        state = state.replace(clones=jax.tree.map(lambda x: jnp.float64(x) / 3, state.clones))
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.restore(state)
            checkpoints.save(state, {})
        assert_same(restore(tmp_path, state)[0], state)


# What it costs


def test_a_checkpoint_writes_the_entries_that_are_new_and_no_others(tmp_path):
    state = make_state(capacity=20)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(state)
        for _ in range(12):  # more than twice round
            state = play(state, 2)
            checkpoints.save(state, {})
            checkpoints.wait()
            newest = tmp_path / "replay" / f"{int(state.round):09}.images"
            assert newest.stat().st_size == 4 * IMAGE_BYTES
    # Five increments make up the newest ring; the one before needs one more.
    assert len(list((tmp_path / "replay").glob("*.images"))) == 6


def test_an_interval_longer_than_the_buffer_writes_it_once(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(state)
        for num_rounds in (2, 4, 11):  # 8 entries and 22 go round a ring of 7
            state = play(state, num_rounds)
            checkpoints.save(state, {})
    newest = tmp_path / "replay" / f"{int(state.round):09}.images"
    assert newest.stat().st_size == CAPACITY * IMAGE_BYTES
    assert_same(restore(tmp_path)[0], state)


def test_copying_compiles_once_whatever_the_increments(tmp_path):
    state = make_state()
    segments._take_block.clear_cache()
    checkpoint._copy.clear_cache()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(state)
        for num_rounds in (1, 3, 10, 2):
            state = play(state, num_rounds)
            checkpoints.save(state, {})
    assert segments._take_block._cache_size() == checkpoint._copy._cache_size() == 1


def test_the_newest_two_are_kept_and_what_a_killed_process_left_is_not(tmp_path, saved):
    states = saved(tmp_path)
    (tmp_path / "000000007.part" / "state").mkdir(parents=True)
    (tmp_path / "replay" / "000000007.images").write_bytes(b"half")
    restore(tmp_path)
    assert names(tmp_path) == list(states)[-2:]
    assert not (tmp_path / "replay" / "000000007.images").exists()


def test_the_disk_that_is_needed_is_bounded_by_the_budget_and_by_the_ring():
    state = make_state(capacity=1000)
    small, all_of_it, no_more = (
        checkpoint.bytes_on_disk(state, interval=100, budget=budget) for budget in (10, 1300, 10**6)
    )
    assert all_of_it - small == 1290 * ENTRY_BYTES
    assert no_more == all_of_it


# How it is used


def test_states_are_saved_in_order_and_after_restore(tmp_path):
    state = play(make_state(), 3)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match="restore"):
            checkpoints.save(state, {})
        checkpoints.restore(state)
        checkpoints.save(state, {"first": 1})
        checkpoints.save(state, {"first": 2})  # is saved already
        with pytest.raises(ValueError, match="older"):
            checkpoints.save(make_state(), {})
    assert restore(tmp_path)[1] == {"first": 1}


@pytest.mark.parametrize(
    ("template", "named"),
    [
        (
            {"width": 4},
            "generator.params.l1: float32[3] there, float32[4] here\n"
            "  generator.opt_state.0.mu.l1: float32[3] there, float32[4] here",
        ),
        ({"capacity": 9}, "replay.images: uint8[7,2,2,3] there, uint8[9,2,2,3] here"),
        ({"dtype": jnp.float32}, "replay.images: uint8[7,2,2,3] there, float32[7,2,2,3] here"),
        ({"labels": True}, "replay.answers: float32[7,5] there, int32[7] here"),
    ],
)
def test_another_state_is_refused_by_the_leaves_that_differ(tmp_path, saved, template, named):
    saved(tmp_path)
    with pytest.raises(UserError) as caught:
        restore(tmp_path, make_state(**template))
    assert named in str(caught.value)


def test_a_leaf_that_only_one_side_has_is_named(tmp_path, saved):
    saved(tmp_path)
    fewer = make_state()
    fewer = fewer.replace(generator=fewer.generator._replace(opt_state=()))
    with pytest.raises(
        UserError, match=r"generator.opt_state.0.count: int32\[\] there, absent here"
    ):
        restore(tmp_path, fewer)


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_disk(tmp_path, monkeypatch, caplog):
    error = OSError(errno.EIO, "the disk")
    monkeypatch.setattr(atomic, "sync", unittest.mock.Mock(side_effect=error))

    def run():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.restore(make_state())
            checkpoints.save(make_state(), {})
            raise UserError("the run")

    with pytest.raises(UserError, match="the run"):
        run()
    assert "the disk" in caplog.text


# Damage


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def falsify(path):
    """As valid as before, to a reader of JSON."""
    path.write_bytes(path.read_bytes().replace(b'"round": 6', b'"round": 7'))


def remove(path):
    path.unlink()


def zero(path):
    """As after a crash of the machine: the length is right, the blocks were never written."""
    path.write_bytes(bytes(path.stat().st_size))


def make_unreadable(path):
    path.unlink()
    path.mkdir()


FILES = {
    "manifest": "{}/manifest.json",
    "orbax": "{}/state/_METADATA",
    "arrays": "{}/state/ocdbt.process_0/d/*",
    "images": "replay/{}.images",
    "answers": "replay/{}.answers",
}


LENGTH, CONTENT, MISSING, UNREADABLE = "instead of", "is not what was written", "is missing", "read"


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("manifest", empty, UNREADABLE),
        ("manifest", truncate, UNREADABLE),
        ("manifest", flip_a_bit, UNREADABLE),
        ("manifest", falsify, UNREADABLE),
        ("manifest", zero, UNREADABLE),
        ("manifest", make_unreadable, UNREADABLE),
        ("manifest", remove, MISSING),
        ("orbax", truncate, LENGTH),
        ("orbax", flip_a_bit, CONTENT),
        ("orbax", remove, MISSING),
        ("arrays", truncate, LENGTH),
        ("arrays", flip_a_bit, CONTENT),
        ("arrays", remove, MISSING),
        ("images", empty, LENGTH),
        ("images", truncate, LENGTH),
        ("images", lengthen, LENGTH),
        ("images", flip_a_bit, CONTENT),
        ("images", zero, CONTENT),
        ("images", make_unreadable, UNREADABLE),
        ("images", remove, MISSING),
        ("answers", truncate, LENGTH),
        ("answers", flip_a_bit, CONTENT),
        ("answers", remove, MISSING),
    ],
)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path, saved, caplog, file, damage, reason
):
    states = saved(tmp_path)
    before, newest = list(states)[-2:]
    path = max(tmp_path.glob(FILES[file].format(newest)), key=lambda path: path.stat().st_size)
    damage(path)
    found, progress = restore(tmp_path)
    assert_same(found, states[before])
    assert progress == {"round": 4}
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    message = record.getMessage()
    assert f"{tmp_path / newest} is damaged: {path.relative_to(tmp_path)} " in message
    assert reason in message
    assert message.endswith(f"Continues from {before}.")
    assert "\n" not in message


@pytest.mark.parametrize("file", FILES)
def test_a_run_that_fell_back_saves_over_the_damaged_checkpoint(tmp_path, saved, caplog, file):
    before, newest = list(saved(tmp_path))[-2:]
    remove(next(tmp_path.glob(FILES[file].format(newest))))
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = checkpoints.restore(make_state())
        other = state.clones._replace(opt_state=jax.tree.map(jnp.ones_like, state.clones.opt_state))
        state = play(state.replace(clones=other), 2)
        checkpoints.save(state, {"round": "6 again"})
    assert names(tmp_path) == [before, newest]
    caplog.clear()
    found, progress = restore(tmp_path)
    assert_same(found, state)
    assert progress == {"round": "6 again"}
    assert not caplog.records


def test_when_none_is_usable_the_run_stops_and_nothing_is_deleted(tmp_path, saved):
    before, newest = list(saved(tmp_path))[-2:]
    flip_a_bit(tmp_path / newest / "manifest.json")
    shutil.rmtree(tmp_path / before / "state")
    files = {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(UserError) as caught:
        restore(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert f"\n  {newest}: {newest}/manifest.json cannot be read" in message
    assert f"\n  {before}: {before}/state/" in message
    assert "is missing" in message
    assert "spending the budget twice" in message
    assert "--workdir" in message
    assert files == {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("*")}


def test_entries_that_all_checkpoints_share_are_missed_in_each(tmp_path, saved):
    _, before, newest = saved(tmp_path)
    flip_a_bit(tmp_path / "replay" / f"{before}.images")
    with pytest.raises(UserError) as caught:
        restore(tmp_path)
    for name in (before, newest):
        assert f"\n  {name}: replay/{before}.images is not what was written" in str(caught.value)


def test_files_that_only_orbax_misses_are_damage_as_well(tmp_path, saved, caplog, monkeypatch):
    newest = list(saved(tmp_path))[-1]
    monkeypatch.setattr(checkpoint, "check_files", lambda *_: None)
    shutil.rmtree(tmp_path / newest / "state")
    assert restore(tmp_path)[1] == {"round": 4}
    assert f"{newest} is damaged: orbax cannot read state/: " in caplog.text


# A disk that cannot be written


def fail_to_save(directory, states):
    """Saves two rounds more, which must fail; the message. What was there stays usable."""
    before, newest = list(states)[-2:]
    with Checkpoints(directory) as checkpoints:
        state, _ = checkpoints.restore(make_state())
        checkpoints.save(play(state, 2), {})
        with pytest.raises(UserError) as caught:
            checkpoints.save(play(state, 3), {})  # tells what became of the one before
    message = str(caught.value)
    assert f"{directory}: the checkpoint of round 8" in message
    assert "bytes) cannot be written" in message
    assert f"The one before, {newest}, stays usable." in message
    assert names(directory) == [before, newest]
    return message


def assert_goes_on(directory, states):
    newest = list(states)[-1]
    with Checkpoints(directory) as checkpoints:
        state, _ = checkpoints.restore(make_state())
        assert_same(state, states[newest])
        checkpoints.save(play(state, 2), {})
    assert names(directory) == [newest, "000000008"]


@pytest.mark.parametrize(
    ("step", "code"),
    [(0, errno.ENOSPC), (4, errno.EDQUOT), (10, errno.EIO), (12, errno.EROFS)],
)
def test_any_write_may_fail(tmp_path, saved, monkeypatch, step, code):
    directory, left, sync = tmp_path / "checkpoints", [None] * step, atomic.sync
    states = saved(directory)

    def fail_in_time(path):
        if not left:
            raise OSError(code, os.strerror(code))
        left.pop()
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "sync", fail_in_time)
        assert os.strerror(code) in fail_to_save(directory, states)
    before, newest = list(states)[-2:]
    spare = shutil.copytree(directory, tmp_path / "spare")
    remove(spare / newest / "manifest.json")
    assert_same(restore(spare)[0], states[before])
    assert_goes_on(directory, states)


def test_what_orbax_says_of_a_full_disk_is_passed_on(tmp_path, saved, monkeypatch):
    states = saved(tmp_path)
    save = unittest.mock.Mock(side_effect=ValueError("RESOURCE_EXHAUSTED: No space left"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.Checkpointer, "save", save)
        assert "RESOURCE_EXHAUSTED" in fail_to_save(tmp_path, states)
    assert_goes_on(tmp_path, states)


def test_a_limit_on_the_size_of_files_is_named(tmp_path, saved, caplog):
    states = saved(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # for orbax's files too little
        message = fail_to_save(tmp_path, states)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in message
    assert not caplog.records  # orbax would log tracebacks
    assert_goes_on(tmp_path, states)


def test_a_disk_that_is_full_or_read_only(tmp_path, saved):
    """On a real file system of its own."""

    def mount(*options):
        return subprocess.run(["mount", *options, tmp_path], capture_output=True, check=False)

    if not shutil.which("mount") or mount("-t", "tmpfs", "-o", "size=400k", "tmpfs").returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        directory, filler = tmp_path / "checkpoints", tmp_path / "filler"
        states = saved(directory)
        free = shutil.disk_usage(tmp_path).free
        filler.write_bytes(bytes(free - 5 * 4096))  # enough for the arrays, not for all files
        assert "No space left on device" in fail_to_save(directory, states)
        filler.unlink()
        mount("-o", "remount,ro")
        with pytest.raises(UserError, match="cannot be written: Read-only file system"):
            Checkpoints(directory)
        mount("-o", "remount,rw")
        assert_goes_on(directory, states)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_directory_that_cannot_be_made_is_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/checkpoints cannot be written: Not a directory"):
        Checkpoints(tmp_path / "file" / "checkpoints")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_refused_at_once(tmp_path):
    (tmp_path / "replay").mkdir()
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        Checkpoints(tmp_path)
    tmp_path.chmod(0o700)


# Kills


def test_every_moment_of_a_save_leaves_the_old_or_the_new_checkpoint(
    tmp_path, saved, monkeypatch, caplog
):
    directory, moments = tmp_path / "checkpoints", []
    states = saved(directory)

    def before(function):
        def wrapped(*args, **kwargs):
            moments.append(tmp_path / f"moment {len(moments)}")
            shutil.copytree(directory, moments[-1])
            return function(*args, **kwargs)

        return wrapped

    with Checkpoints(directory) as checkpoints, monkeypatch.context() as patch:
        state, _ = checkpoints.restore(make_state())
        new = play(state, 4)  # a whole ring: the old increments are deleted
        patch.setattr(atomic, "sync", before(atomic.sync))
        patch.setattr(pathlib.Path, "rename", before(pathlib.Path.rename))
        patch.setattr(pathlib.Path, "unlink", before(pathlib.Path.unlink))
        checkpoints.save(new, {})
        checkpoints.wait()
    found = [restore(moment)[0] for moment in moments]
    assert not caplog.records  # nothing is ever half there
    committed = [int(state.round) == 10 for state in found]
    assert committed == sorted(committed)
    assert committed.count(False) > 10 < len(committed)
    assert committed.count(True) >= 3
    for state, is_new in zip(found, committed, strict=True):
        assert_same(state, new if is_new else list(states.values())[-1])


def save_until_killed(directory, reports):
    """What a child does: continues, and saves after every third round."""
    with Checkpoints(directory) as checkpoints:
        found = checkpoints.restore(jax.eval_shape(make_state))
        state = jax.jit(make_state)() if found is None else found[0]
        for i in range(10_000):
            state = play(state, 3)
            checkpoints.save(state, {"round": int(state.round)})
            if i % 2:
                checkpoints.wait()
                reports.send(int(state.round))


def test_a_process_killed_while_it_saves_loses_nothing_that_was_waited_for(tmp_path, spawn):
    delays, round_, expected = random.Random(0), 0, make_state()
    for _ in range(4):
        child, reports = spawn(save_until_killed, tmp_path)
        waited_for = reports.recv()
        time.sleep(delays.uniform(0, 0.3))
        child.kill()
        child.join()
        with contextlib.suppress(EOFError):
            while reports.poll():
                waited_for = reports.recv()
        state, progress = restore(tmp_path)
        assert int(state.round) >= waited_for > round_
        assert progress == {"round": int(state.round)}
        expected = play(expected, int(state.round) - round_)
        round_ = int(state.round)
        assert_same(state, expected)


@pytest.fixture(scope="module")
def spawn():
    """A function that runs another in a process of its own, with a pipe to report through.

    All are forked from one that has imported what takes time, and has not started JAX.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hypothesis", "optax", "orbax.checkpoint", "pytest"])
    children = []

    def start(function, *args):
        reports, end = context.Pipe(duplex=False)
        child = context.Process(target=function, args=(*args, end))
        child.start()
        end.close()
        children.append(child)
        return child, reports

    yield start
    for child in children:
        child.kill()
        child.join()


# The lock


def hold_lock(workdir, reports):
    with lock(workdir):
        reports.send(os.getpid())
        time.sleep(60)


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path, spawn):
    child, reports = spawn(hold_lock, tmp_path)
    pid = reports.recv()
    with pytest.raises(UserError, match=f"{tmp_path} is in use by .*pid {pid}"):
        lock(tmp_path).__enter__()
    child.kill()
    child.join()
    with lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_workdir_can_be_locked_again_after_use(tmp_path):
    for _ in range(2):
        with lock(tmp_path), pytest.raises(UserError, match="in use"):
            lock(tmp_path).__enter__()


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match="absent cannot be written: No such file"):
        lock(tmp_path / "absent").__enter__()
