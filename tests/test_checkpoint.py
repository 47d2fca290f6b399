"""Checkpoints: what is saved comes back bit for bit, whatever is done to the process or the disk.

The state is made by hand: a few small leaves of every kind, and a ring of a dozen entries.
"""

import contextlib
import errno
import json
import logging
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disguide_jax import checkpoint, replay
from disguide_jax.checkpoint import Checkpoints
from disguide_jax.errors import UserError
from disguide_jax.state import TrainState, Variables

CAPACITY = 7
BATCH = 2
TX = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(lambda count: 0.1, momentum=0.9))


def make_state(capacity=CAPACITY, dtype=jnp.uint8, labels=False, width=3):
    """Leaves of several types and no rank, NamedTuples, empty dicts, optax states, a key."""
    params = {"fc": {"kernel": jnp.arange(2.0 * width).reshape(2, width), "bias": jnp.ones(2)}}
    clones = Variables(params, {"norm": {"mean": jnp.zeros((2, width), jnp.bfloat16)}})
    generator = Variables({"l1": jnp.ones((width,))}, {})
    answers = ((BATCH,), jnp.int32) if labels else ((BATCH, 5), jnp.float32)
    return TrainState(
        round=jnp.zeros((), jnp.int32),
        queries=jnp.zeros((), jnp.int32),
        key=jax.random.key(3, impl="rbg"),
        generator=generator,
        clones=clones,
        generator_opt=optax.adam(1e-3).init(generator.params),
        clones_opt=TX.init(clones.params),
        replay=replay.init(
            capacity,
            jax.ShapeDtypeStruct((BATCH, 2, 2, 3), dtype),
            jax.ShapeDtypeStruct(*answers),
        ),
    )


@jax.jit
def _play(state):
    drawn = jax.random.fold_in(state.key, state.round)
    images = jax.random.uniform(drawn, (BATCH, 2, 2, 3), minval=-1.0)
    answers = state.round * BATCH + jnp.arange(BATCH)
    if state.replay.answers.ndim == 2:
        answers = answers[:, None] + jnp.arange(5) / 10
    grow = jax.tree.map(lambda x: x + x.dtype.type(1), (state.clones, state.clones_opt))
    return state.replace(
        round=state.round + 1,
        queries=state.queries + BATCH,
        clones=grow[0],
        clones_opt=grow[1],
        replay=replay.insert(
            state.replay, replay.encode(images, state.replay.images.dtype), answers
        ),
    )


def play(state, num_rounds=1):
    """Rounds that change every part of a state, each in a way of its own."""
    for _ in range(num_rounds):
        state = _play(state)
    return state


def to_numpy(state):
    return {
        path: np.asarray(jax.random.key_data(leaf) if path == "key" else leaf)
        for path, leaf in checkpoint._flatten(state).items()
    }


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert jax.random.key_impl(found.key) == jax.random.key_impl(expected.key)
    expected = to_numpy(expected)
    for path, leaf in to_numpy(found).items():
        assert leaf.dtype == expected[path].dtype, path
        assert leaf.tobytes() == expected[path].tobytes(), path


def restore(directory, template=None):
    with Checkpoints(directory) as saved:
        return saved.restore(make_state() if template is None else template)


def save_some(directory, rounds=(2, 4, 6)):
    """Saves the states after so many rounds; returns them by the names of their checkpoints."""
    states, state = {}, make_state()
    with Checkpoints(directory) as saved:
        assert saved.restore(state) is None
        for round_ in rounds:
            state = play(state, round_ - int(state.round))
            saved.save(state, {"round": round_})
            states[f"{int(state.queries):09}"] = state
    return states


def names(directory):
    return sorted(path.name for path in directory.iterdir() if path.name != "replay")


# Exactness


def test_what_is_saved_comes_back_bit_for_bit_and_can_be_donated(tmp_path):
    state = play(make_state(), 5)
    progress = {"best": 0.1 + 0.2, "queries_to": {"0.5": None}, "log_bytes": 12}
    with Checkpoints(tmp_path / "new" / "checkpoints") as saved:
        assert saved.restore(jax.eval_shape(make_state)) is None
        saved.save(state, progress)
    found, found_progress = restore(tmp_path / "new" / "checkpoints", jax.eval_shape(make_state))
    assert_same(found, state)
    assert found_progress == progress
    assert_same(jax.jit(play, donate_argnums=0)(found), play(state))


@settings(max_examples=12, deadline=None)
@given(
    capacity=st.integers(2, 9),
    dtype=st.sampled_from(["uint8", "bfloat16", "float32"]),
    labels=st.booleans(),
    block_rows=st.integers(1, 4),
    steps=st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=6),
)
def test_any_sequence_of_rounds_saves_and_restarts_gives_the_ring_back(
    tmp_path_factory, capacity, dtype, labels, block_rows, steps
):
    directory = tmp_path_factory.mktemp("checkpoints")
    state = make_state(capacity, jnp.dtype(dtype), labels)
    template = jax.eval_shape(lambda: state)
    row_bytes = 2 * 2 * 3 * jnp.dtype(dtype).itemsize
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(checkpoint, "BLOCK_BYTES", block_rows * row_bytes)
        saved = stack.enter_context(Checkpoints(directory))
        saved.restore(template)
        for num_rounds, restarts in steps:
            state = play(state, num_rounds)
            saved.save(state, {"round": int(state.round)})
            if restarts:
                saved.close()
                saved = stack.enter_context(Checkpoints(directory))
                found, progress = saved.restore(template)
                assert_same(found, state)
                assert progress == {"round": int(state.round)}
                state = found
        stack.close()
        assert_same(restore(directory, template)[0], state)
    interval = BATCH * max(num_rounds for num_rounds, _ in steps)
    on_disk = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    assert on_disk <= checkpoint.bytes_on_disk(
        template, interval=interval, budget=max(int(state.queries), 1)
    )


def test_the_next_round_may_be_given_the_state_at_once(tmp_path):
    round_ = jax.jit(play, donate_argnums=0)
    state, expected = make_state(capacity=500), make_state(capacity=500)
    with Checkpoints(tmp_path) as saved:
        saved.restore(expected)
        for _ in range(5):
            state, expected = round_(state), play(expected)
            saved.save(state, {})
            state, expected = round_(state), play(expected)
        saved.save(state, {})
        del state
    assert_same(restore(tmp_path, expected)[0], expected)


def test_blocks_beyond_the_room_on_the_device_wait_on_the_host(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_spare_device_bytes", lambda _: 100)
    monkeypatch.setattr(checkpoint, "BLOCK_BYTES", 12)
    state = play(make_state(), 3)
    with Checkpoints(tmp_path) as saved:
        saved.restore(state)
        blocks = saved._take(state.replay, checkpoint.Segment("", 0, 6))
        on_host = [isinstance(images, np.ndarray) for images, _ in blocks]
        assert on_host == [False, False, False, True, True, True]
        saved.save(state, {})
    assert_same(restore(tmp_path)[0], state)


def test_double_precision_comes_back_as_such(tmp_path):
    with jax.enable_x64(True):
        state = play(make_state(dtype=jnp.float64), 3)
        clones = jax.tree.map(lambda x: x.astype(jnp.float64) / 3, state.clones)
        state = state.replace(clones=clones)
        with Checkpoints(tmp_path) as saved:
            saved.restore(state)
            saved.save(state, {})
        assert_same(restore(tmp_path, state)[0], state)


# Cost


def test_a_checkpoint_writes_only_the_entries_that_are_new(tmp_path):
    state = make_state(capacity=100)
    with Checkpoints(tmp_path) as saved:
        saved.restore(state)
        sizes = []
        for _ in range(30):  # wraps after 50 rounds, and once more
            state = play(state, 5)
            saved.save(state, {})
            saved.wait()
            sizes.append((tmp_path / f"replay/{int(state.queries):09}.images").stat().st_size)
        files = list((tmp_path / "replay").glob("*.images"))
    assert sizes == [10 * 2 * 2 * 3] * 30
    assert len(files) == 11  # ten make up the ring of the newest; the other needs one more


def test_a_long_interval_writes_the_buffer_once(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as saved:
        saved.restore(state)
        for num_rounds in (2, 4, 11):  # 8 entries and 22 go round a ring of 7
            state = play(state, num_rounds)
            saved.save(state, {})
            saved.wait()
    newest = tmp_path / f"replay/{int(state.queries):09}.images"
    assert newest.stat().st_size == CAPACITY * 2 * 2 * 3
    assert_same(restore(tmp_path)[0], state)


def test_copying_compiles_once_whatever_the_increments(tmp_path):
    state = make_state(capacity=50)
    checkpoint._take_block.clear_cache()
    checkpoint._copy.clear_cache()
    with Checkpoints(tmp_path) as saved:
        saved.restore(state)
        for num_rounds in (1, 3, 20, 7):
            state = play(state, num_rounds)
            saved.save(state, {})
    assert checkpoint._take_block._cache_size() == checkpoint._copy._cache_size() == 1


def test_only_the_newest_two_are_kept_and_what_killed_processes_left_is_not(tmp_path):
    states = save_some(tmp_path, rounds=(1, 2, 3, 4))
    assert names(tmp_path) == list(states)[-2:]
    (tmp_path / "000000010.part" / "state").mkdir(parents=True)
    (tmp_path / "replay" / "000000010.images").write_bytes(b"half")
    restore(tmp_path)
    assert names(tmp_path) == list(states)[-2:]
    assert not (tmp_path / "replay" / "000000010.images").exists()


def test_a_budget_bounds_the_disk_that_is_needed():
    state = make_state(capacity=1000)
    need = [checkpoint.bytes_on_disk(state, interval=100, budget=b) for b in (10, 1300, 10**6)]
    per_entry = 2 * 2 * 3 + 5 * 4
    assert need[1] - need[0] == 1290 * per_entry
    assert need[2] == need[1]  # the ring, and three increments


# Use


def test_states_are_saved_in_order_after_restore(tmp_path):
    state = play(make_state(), 3)
    with Checkpoints(tmp_path) as saved:
        with pytest.raises(ValueError, match="restore"):
            saved.save(state, {})
        saved.restore(state)
        saved.save(state, {"first": 1})
        saved.save(state, {"first": 2})  # the same again
        with pytest.raises(ValueError, match="older"):
            saved.save(make_state(), {})
    assert restore(tmp_path)[1] == {"first": 1}


@pytest.mark.parametrize(
    ("template", "named"),
    [
        (
            {"width": 4},
            "generator.params.l1: float32[3] there, float32[4] here\n"
            "  clones.params.fc.kernel: float32[2,3] there, float32[2,4] here",
        ),
        ({"capacity": 9}, "replay.images: uint8[7,2,2,3] there, uint8[9,2,2,3] here"),
        ({"dtype": jnp.float32}, "replay.images: uint8[7,2,2,3] there, float32[7,2,2,3] here"),
        ({"labels": True}, "replay.answers: float32[7,5] there, int32[7] here"),
    ],
)
def test_another_state_is_refused_by_the_leaves_that_differ(tmp_path, template, named):
    save_some(tmp_path)
    with pytest.raises(UserError) as caught:
        restore(tmp_path, make_state(**template))
    assert named in str(caught.value)


def test_leaves_that_only_one_side_has_are_named(tmp_path):
    save_some(tmp_path)
    state = make_state()
    with pytest.raises(UserError, match=r"clones_opt\S+ there, absent here"):
        restore(tmp_path, state.replace(clones_opt=()))


# Damage


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def remove(path):
    path.unlink()


def zero(path):
    """As after a crash of the machine: the length is right, the blocks were never written."""
    path.write_bytes(bytes(path.stat().st_size))


def unreadable(path):
    path.unlink()
    path.mkdir()


DAMAGE = [truncate, empty, grow, flip_a_bit, remove, zero, unreadable]
FILES = {
    "manifest": "{name}/manifest.json",
    "a file of orbax": "{name}/state/_METADATA",
    "a file with arrays": "{name}/state/ocdbt.process_0/d/*",
    "images": "replay/{name}.images",
    "answers": "replay/{name}.answers",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path, caplog, file, damage
):
    states = _saved_once(tmp_path)
    before, newest = list(states)[-2:]
    path = max(tmp_path.glob(FILES[file].format(name=newest)), key=lambda p: p.stat().st_size)
    damage(path)
    with Checkpoints(tmp_path) as saved:
        found, progress = saved.restore(make_state())
        (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
        message = record.getMessage()
        assert str(path.relative_to(tmp_path)) in message
        assert f"{newest} is damaged" in message
        assert f"Continues from {before}." in message
        assert "\n" not in message
        assert_same(found, states[before])
        assert progress == {"round": 4}
        # The same rounds again, other entries: the damaged one of this name is replaced.
        found = play(found.replace(key=jax.random.key(4, impl="rbg")), 2)
        saved.save(found, {"round": "6 again"})
    assert names(tmp_path) == [before, newest]
    caplog.clear()
    again, progress = restore(tmp_path)
    assert_same(again, found)
    assert progress == {"round": "6 again"}
    assert not caplog.records


@pytest.fixture(scope="module")
def saved_before(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    return directory, save_some(directory)


@pytest.fixture(autouse=True)
def _copy_of_saved(saved_before):
    global _saved_once

    def _saved_once(directory):
        shutil.copytree(saved_before[0], directory, dirs_exist_ok=True)
        return saved_before[1]
