"""The losses of DisGUIDE (Rosenthal et al., AAAI 2023) and its relatives: arrays in, arrays out.

No configuration and no randomness in here, so that other code can use any of it under
`jit`, `vmap` and `grad`. Shapes: C clones, N batch, K classes. Losses of a batch come back
per example, `[..., N]`, and the caller reduces, except where an equation is about the batch
as a whole.
"""

import chex
import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def disagreement(probs: Array) -> Array:
    """How far the clones are apart: the unbiased standard deviation over clones.

    Equation 2 is `L_D = -disagreement(probs).mean()`. For two clones the deviation is
    `abs(a - b) / sqrt(2)`.

    Args:
      probs: probabilities [C, N, K], C >= 2.

    Returns:
      The deviation averaged over classes, [N], >= 0.

    Raises:
      AssertionError: of other shapes, or of a single clone, whose deviation would be NaN.
    """
    chex.assert_rank(probs, 3)
    chex.assert_axis_dimension_gt(probs, 0, 1)
    variance = jnp.var(probs, axis=0, ddof=1)
    # The square root has no derivative where all clones say the same: there, like PyTorch's
    # std, it passes no gradient rather than NaN.
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0).mean(axis=-1)


def logit_distance(logits: Array) -> Array:
    """How far two clones are apart: `mean_k abs(S_1 - S_2)` on logits.

    Dual Students' generator maximises its batch mean, and nothing else.

    Args:
      logits: [2, N, K].

    Returns:
      The distance averaged over classes, [N], >= 0.

    Raises:
      AssertionError: of other shapes, or of more clones than two.
    """
    chex.assert_rank(logits, 3)
    chex.assert_axis_dimension(logits, 0, 2)
    return jnp.abs(logits[0] - logits[1]).mean(axis=-1)


def diversity(probs: Array, *, epsilon: float = 1e-6) -> Array:
    """Class-diversity loss `L_div = sum_k w_k log w_k`, Equations 3 and 4.

    Args:
      probs: probabilities [C, N, K]; w is their mean over clones and batch.
      epsilon: added to every probability, as in the authors' code.

    Returns:
      A scalar between -log K (all classes alike) and 0 (one class alone).

    Raises:
      AssertionError: of other shapes.
    """
    chex.assert_rank(probs, 3)
    mean_vote = (probs + epsilon).mean(axis=(0, 1))
    return jnp.sum(mean_vote * jnp.log(mean_vote))


def class_balance(probs: Array, *, epsilon: float = 1e-5) -> Array:
    """`sum_k a_k log(a_k + epsilon)`, which DFMS's generator minimises beside its GAN loss.

    Args:
      probs: probabilities [C, N, K]; a is their mean over clones and batch.
      epsilon: as in the authors' code.

    Returns:
      A scalar between about -log K (all classes alike) and 0 (one class alone).

    Raises:
      AssertionError: of other shapes.
    """
    chex.assert_rank(probs, 3)
    mean = probs.mean(axis=(0, 1))
    return jnp.sum(mean * jnp.log(mean + epsilon))


def generator_loss(logits: Array, *, diversity_weight: float) -> tuple[Array, dict[str, Array]]:
    """The generator's joint loss `L_G = L_D + lambda L_div`, Equation 1.

    Args:
      logits: the clones' answers to the generated batch, [C, N, K].
      diversity_weight: lambda; the paper uses 0.2 for 10 classes and 0.04 for 100.

    Returns:
      The scalar loss, and its two terms as metrics.

    Raises:
      AssertionError: of other shapes, or of a single clone.
    """
    chex.assert_rank(logits, 3)
    probs = jax.nn.softmax(logits)
    mean_disagreement, diversity_loss = disagreement(probs).mean(), diversity(probs)
    loss = -mean_disagreement + diversity_weight * diversity_loss
    return loss, {"disagreement": mean_disagreement, "diversity_loss": diversity_loss}


def centred_log_probs(probs: Array, *, floor: float = 1e-30) -> Array:
    """`v = log p - mean_k log p`: what probabilities honestly tell of the logits behind them.

    Args:
      probs: the victim's probabilities [..., K].
      floor: smaller probabilities are raised to it and the rest renormalised, because a
        victim that rounds its answers would otherwise make log 0. The default only catches
        exact zeros of float32; choose half a unit of the last digit for a rounding victim.

    Returns:
      v [..., K], with mean 0 over classes.

    Raises:
      AssertionError: there is no axis of classes.
    """
    chex.assert_axis_dimension_gt(probs, -1, 0)
    probs = jnp.maximum(probs, floor)
    log_probs = jnp.log(probs / probs.sum(axis=-1, keepdims=True))
    return log_probs - log_probs.mean(axis=-1, keepdims=True)


def at_temperature(probs: Array, temperature: float) -> Array:
    """`softmax(logits / T)` of the logits behind probabilities [..., K]: p^(1/T), renormalised.

    Args:
      probs: [..., K], each above 0 somewhere.
      temperature: T > 0; above 1 it evens them out.

    Raises:
      AssertionError: there is no axis of classes.
    """
    chex.assert_axis_dimension_gt(probs, -1, 0)
    # Of the largest, so that no T makes all of them 0.
    powers = (probs / probs.max(axis=-1, keepdims=True)) ** (1 / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


def l1(logits: Array, *, targets: Array) -> Array:
    """Mean absolute error to the victim's centred log-probabilities, [..., N, K] -> [..., N].

    The authors' code trains its soft-label clones with it; the paper says cross-entropy.

    Raises:
      AssertionError: N or K differ.
    """
    chex.assert_equal_shape_suffix([logits, targets], 2)
    return jnp.abs(logits - targets).mean(axis=-1)


def top_l1(logits: Array, *, targets: Array, num: int) -> Array:
    """`l1` on the victim's top classes; of the others only that they are no likelier.

    Errors are centred over the top classes, for of these only the differences are learnt: their
    mean changes with the classes from image to image. The others' target is that of the last
    top class, and only what exceeds it is an error: with none at all their logits would be
    free, and each could outvote the top classes.

    Args:
      logits: [..., N, K].
      targets: the victim's log-probabilities but for a constant, [..., N, K].
      num: of top classes, from 1 to K.

    Returns:
      The mean error over all classes, [..., N], >= 0.

    Raises:
      AssertionError: N or K differ, or there are fewer classes.
    """
    chex.assert_equal_shape_suffix([logits, targets], 2)
    chex.assert_axis_dimension_gteq(targets, -1, num)
    values, classes = jax.lax.top_k(targets, num)
    is_top = jax.nn.one_hot(classes, targets.shape[-1]).sum(axis=-2) > 0
    errors = logits - jnp.where(is_top, targets, values[..., -1:])
    errors -= jnp.where(is_top, errors, 0).sum(axis=-1, keepdims=True) / num
    return jnp.where(is_top, jnp.abs(errors), jax.nn.relu(errors)).mean(axis=-1)


def soft_cross_entropy(logits: Array, *, probs: Array) -> Array:
    """Cross-entropy with the victim's probabilities, [..., N, K] -> [..., N] (Section 3.2).

    Raises:
      AssertionError: N or K differ.
    """
    chex.assert_equal_shape_suffix([logits, probs], 2)
    return -jnp.sum(probs * jax.nn.log_softmax(logits), axis=-1)


def kl_divergence(logits: Array, *, probs: Array) -> Array:
    """KL(victim || clone), [..., N, K] -> [..., N]; its batch mean is PyTorch's "batchmean".

    Raises:
      AssertionError: N or K differ.
    """
    return soft_cross_entropy(logits, probs=probs) + jax.scipy.special.xlogy(probs, probs).sum(
        axis=-1
    )


def hard_cross_entropy(logits: Array, *, labels: Array, smoothing: float = 0.0) -> Array:
    """Cross-entropy with the victim's labels [..., N], [..., N, K] -> [..., N] (Section 3.2).

    Args:
      logits: [..., N, K].
      labels: [..., N].
      smoothing: the share of each label, from 0 to 1, that is spread evenly over all classes
        (Szegedy et al., CVPR 2016).

    Raises:
      AssertionError: N differs.
    """
    chex.assert_axis_dimension(labels, -1, logits.shape[-2])
    labels = jnp.broadcast_to(labels, logits.shape[:-1])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if smoothing == 0:
        return loss
    return (1 - smoothing) * loss - smoothing * jax.nn.log_softmax(logits).mean(axis=-1)


def reverse_cross_entropy(logits: Array, *, labels: Array) -> Array:
    """`-log(1 - p_y)`, low where a label has no probability, [..., N, K] -> [..., N].

    What misinforms an attacker is trained with it (Kariyappa and Qureshi, CVPR 2020).

    Raises:
      AssertionError: N differs.
    """
    chex.assert_axis_dimension(labels, -1, logits.shape[-2])
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(logits, axis=-1, where=~is_label)
    return jax.nn.logsumexp(logits, axis=-1) - others


def boundary_weights(logits: Array, *, weight: float) -> Array:
    """How much each image counts that lies near the clones' decision boundary, [C, N, K] -> [N].

    The weight is `1 + weight * (1 - (p1 - p2))`, p1 and p2 the two highest of the clones' mean
    softmax, divided by its mean over the batch, so that learning rates mean what they did. No
    gradient flows through it.

    Raises:
      AssertionError: of other shapes, or of a single class.
    """
    chex.assert_rank(logits, 3)
    chex.assert_axis_dimension_gt(logits, -1, 1)
    probs = jax.nn.softmax(jax.lax.stop_gradient(logits)).mean(axis=0)
    top, _ = jax.lax.top_k(probs, 2)
    weights = 1 + weight * (1 - (top[:, 0] - top[:, 1]))
    return weights / weights.mean()
