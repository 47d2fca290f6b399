"""Random shapes among the queries: what they look like, and how many are sent."""

import jax
import numpy as np
import pytest
import tiny
from test_ideas import play

from disguide_jax.config import DisguideConfig
from disguide_jax.core import shapes, streams
from disguide_jax.methods import disguide


@pytest.mark.parametrize(("num", "size", "channels"), [(64, 32, 1), (64, 32, 3), (1, 16, 3)])
def test_shapes_lie_on_black_and_no_two_are_alike(num, size, channels):
    images = np.asarray(shapes.draw(jax.random.key(0), num, size, channels))
    assert images.shape == (num, size, size, channels)
    assert images.min() >= -1
    assert images.max() <= 1
    black = (images == -1).all(axis=-1)
    assert 0.02 < black.mean() < 0.98
    assert len(np.unique(images.reshape(num, -1), axis=0)) == num
    if num > 1:
        shares = black.mean(axis=(1, 2))
        assert shares.std() > 0.1, "some are small, some large"
        means = images.mean(axis=(1, 2, 3), where=~black[..., None])
        assert means[np.isfinite(means)].std() > 0.2, "some are dark, some bright"


def test_noise_is_as_smooth_as_its_grid():
    fields = {n: shapes.smooth_noise(jax.random.key(1), (n,), (200, 32, 32, 1)) for n in (3, 8)}
    for field in fields.values():
        assert abs(np.mean(field)) < 0.1
    rough = {n: np.abs(np.diff(field, axis=1)).mean() for n, field in fields.items()}
    assert rough[8] > 2 * rough[3]


def test_every_grid_is_drawn():
    fields = shapes.smooth_noise(jax.random.key(2), (1, 32), (40, 32, 32, 1))
    flat = np.asarray(fields).std(axis=(1, 2, 3)) < 1e-6  # of a single cell
    assert 8 < flat.sum() < 32


@pytest.mark.parametrize("candidates", [1, 5])
def test_a_share_of_every_batch_is_shapes_and_the_rest_the_generators(candidates):
    """Of more candidates than are sent, those that the clones disagree on most."""
    config = tiny.config(
        disguide=DisguideConfig(shapes=0.4, fresh_batches=2, candidates=candidates)
    )
    kit, state, after, sent = play(config)
    assert [len(batch) for batch in sent] == [6, 6]
    assert int(after.queries) == int(after.replay.size) == 12
    keys = jax.random.split(streams.of_round(state, disguide.CLONES))
    drawn = [
        shapes.draw(jax.random.fold_in(key, disguide.SHAPES), candidates * 2, 32, 3) for key in keys
    ]
    for some, batch in zip(drawn, sent, strict=True):
        if candidates == 1:
            np.testing.assert_allclose(batch[4:], some, atol=1e-6)
        else:
            assert np.abs(batch[4:] - some[:2]).max() > 0.1, "not those that come first"
        assert (np.abs(batch[:4]) < 1).all(), "a tanh is never quite black"
    chosen = disguide.most_disputed(kit, state.clones.variables, drawn[0], 2)
    np.testing.assert_allclose(sent[0][4:], chosen, atol=1e-6)  # the second's clones have learnt


def test_the_share_is_rounded_down_and_the_generator_keeps_one_image():
    for share, number in ((0.0, 0), (0.16, 0), (0.17, 1), (0.99, 5)):
        config = tiny.config(disguide=DisguideConfig(shapes=share))
        _, _, _, (batch,) = play(config)
        assert (batch == -1).all(axis=-1).any(axis=(1, 2)).sum() == number
