"""What a victim on the host may answer, and how an answer that is not whole is read.

Probabilities that name only the top k classes, or are rounded, become whole ones before anyone
learns from them: what is left of 1 goes evenly to the classes that were not named, and what was
rounded to 0 counts as half a unit of the last decimal.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from disguide_jax.core.answers import whole
from disguide_jax.errors import UserError

SUM_TOLERANCE = 0.01  # of probabilities, beside what their rounding explains
SHOWN = 200  # characters of a wrong answer


class Contract(NamedTuple):
    """The answers that a configuration expects."""

    num_classes: int
    hard_labels: bool  # probabilities are answered, or asked for, no further than their largest
    top_k: int = 0  # classes that probabilities name; 0: all
    decimals: int = 0  # to which they are rounded; 0: they are not
    defence: str = ""  # what is to change them, which takes probabilities

    def check(self, answers: Any, num_images: int, source: str) -> np.ndarray:
        """Answers as arrays: labels [N] int32, or whole probabilities [N, K] float32.

        Args:
          answers: [N, K] probabilities or [N] labels, as arrays or lists.
          num_images: N, that were asked about.
          source: who answered, for messages.

        Raises:
          UserError: they are not what was agreed; shows what came.
        """
        answers = _as_array(answers, source)
        if answers.dtype.kind not in "iuf":
            raise _wrong(source, answers, "they must be numbers")
        if not np.isfinite(answers).all():
            raise _wrong(source, answers, "they must be finite")
        if answers.ndim == 2 and answers.shape[1] == 1 and self.num_classes > 1:
            answers = answers[:, 0]  # a column of labels
        if answers.ndim == 1:
            return self._labels(answers, num_images, source)
        return self._probabilities(answers, num_images, source)

    def _labels(self, answers: np.ndarray, num_images: int, source: str) -> np.ndarray:
        if not self.hard_labels:
            wanted = f"they must be probabilities [{num_images}, {self.num_classes}]"
            advice = "set config.labels=hard"
            if self.defence:
                wanted += f", of which the defence {self.defence} makes others"
                advice += " and config.victim.defence=label_only or none"
            raise _wrong(
                source, answers, f"{wanted}; for a victim that names classes only, {advice}"
            )
        wanted = f"{num_images} labels from 0 to {self.num_classes - 1}"
        if answers.shape != (num_images,) or (answers != np.round(answers)).any():
            raise _wrong(source, answers, f"they must be {wanted}")
        if answers.min() < 0 or answers.max() >= self.num_classes:
            raise _wrong(source, answers, f"they must be {wanted}")
        return answers.astype(np.int32)

    def _probabilities(self, answers: np.ndarray, num_images: int, source: str) -> np.ndarray:
        if answers.shape != (num_images, self.num_classes):
            raise _wrong(
                source,
                answers,
                f"they must be probabilities [{num_images}, {self.num_classes}] or labels "
                f"[{num_images}]",
            )
        sums, half = answers.sum(axis=1), 0.5 * 10.0**-self.decimals if self.decimals else 0.0
        slack = SUM_TOLERANCE + half * self.num_classes
        if answers.min() < 0 or sums.max() > 1 + slack or sums.min() <= 0:
            raise _wrong(source, answers, "they must be at least 0 and sum to 1")
        named = (answers > 0).sum(axis=1)
        if self.top_k and named.max() > self.top_k:
            raise _wrong(
                source, answers, f"config.victim.top_k is {self.top_k}, but {named.max()} are named"
            )
        if not 0 < self.top_k < self.num_classes and sums.min() < 1 - slack:
            raise _wrong(
                source,
                answers,
                "they must sum to 1; where only the likeliest classes are named, set "
                "config.victim.top_k",
            )
        if self.decimals and (abs(answers - np.round(answers, self.decimals)) > 1e-6).any():
            raise _wrong(
                source, answers, f"config.victim.decimals is {self.decimals}, but they have more"
            )
        if self.hard_labels:
            return answers.argmax(axis=1).astype(np.int32)
        spread = 0 < self.top_k < self.num_classes
        return np.asarray(_whole(answers.astype(np.float32), spread, self.decimals))


_whole = jax.jit(
    lambda probs, spread, decimals: whole(probs, spread=spread, decimals=decimals),
    static_argnums=(1, 2),
)


def _as_array(answers: Any, source: str) -> np.ndarray:
    try:
        return np.asarray(answers)
    except (ValueError, TypeError) as error:  # ragged lists, foreign objects
        raise UserError(f"{source} answered what is no array: {str(answers)[:SHOWN]}") from error


def _wrong(source: str, answers: np.ndarray, what: str) -> UserError:
    shown = np.array2string(answers.ravel()[:8], precision=4, separator=", ")[:SHOWN]
    return UserError(
        f"{source} answered {answers.dtype} {list(answers.shape)}, beginning {shown}: {what}"
    )
