"""What goes beyond the paper, switched on: in whole rounds on tiny networks."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from test_choose import plain

from disguide_jax.config import DisguideConfig
from disguide_jax.core import images, streams
from disguide_jax.methods import disguide


def play(config, answer=tiny.brightness):
    """The kit, the states before and after a round, and what the victim was sent."""
    kit, state = tiny.build(config)
    sent = []

    def victim(x):
        jax.debug.callback(lambda x: sent.append(np.asarray(x)), x, ordered=True)
        return answer(x)

    after, _ = jax.jit(tiny.make_step(kit))(state, jax.tree_util.Partial(victim))
    jax.effects_barrier()
    return kit, state, after, sent


def test_of_all_candidates_those_are_sent_that_the_clones_disagree_on_most_even_over_classes():
    config = tiny.config(disguide=DisguideConfig(candidates=5, fresh_batches=2))
    kit, state, after, sent = play(config)
    first, _ = jax.random.split(streams.of_round(state, disguide.CLONES))
    drawn = images.draw_latent(first, 5 * 6, 4, 3)
    made, _ = images.generate(
        kit.networks.generator, after.generator.variables, *drawn, gray_every=8, train=False
    )
    logits, _ = kit.networks.clones.apply(state.clones.variables, made, train=False)
    probs = np.asarray(jax.nn.softmax(logits))
    classes = probs.sum(axis=0).argmax(-1)
    assert len(set(classes.tolist())) > 1
    chosen = plain(probs.std(axis=0, ddof=1).mean(-1), classes, 6)
    np.testing.assert_allclose(sent[0], made[jnp.array(chosen)], atol=1e-5)
    assert [len(batch) for batch in sent] == [6, 6], "what is not sent costs nothing"
    assert int(after.queries) == int(after.replay.size) == int(after.answered.sum()) == 12
