"""An endpoint that is asked through a ledger: what was answered is never paid for again."""

from collections.abc import Callable

import numpy as np

from disguide_jax.files.ledger import (
    ACCOUNTS,
    FIDELITY,
    TEST,
    TRAINING,
    UNDEFENDED,
    Ledger,
    Spent,
)
from disguide_jax.victims.host import Endpoint

UNPAID = (TEST, UNDEFENDED)  # accounts beside the budget


class Paid:
    """Asks an endpoint about images that the ledger has no answers for.

    Args:
      endpoint: who answers.
      ledger: of the workdir.
      budget: images that it may receive, but for those of the accounts in UNPAID.
      check_stop: raises an exception when the run has been asked to stop.
      undefended: who answers on the account UNDEFENDED.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        ledger: Ledger,
        *,
        budget: int,
        check_stop: Callable[[], None],
        undefended: Endpoint | None = None,
    ):
        self._undefended = undefended
        self._endpoint, self.ledger, self._budget = endpoint, ledger, budget
        self._check_stop = check_stop

    @property
    def counts(self) -> list[int]:
        """All images that it has received, by account."""
        return [self.ledger.received[account] for account in ACCOUNTS]

    @property
    def received(self) -> int:
        """Images of the budget that the endpoint has received, each time that they were sent."""
        return self.ledger.received[TRAINING] + self.ledger.received[FIDELITY]

    @property
    def received_for_tests(self) -> int:
        """Test images that it has received, beside the budget."""
        return sum(self.ledger.received[account] for account in UNPAID)

    @property
    def has_answered(self) -> bool:
        """Whether any answer has ever come."""
        return any(self.ledger.answered_up_to(account) for account in ACCOUNTS)

    def payable(self, num_queries: int) -> int:
        """The position up to which the budget pays for training images.

        It is less than the budget by what measures fidelity, and what was sent more than once.

        Args:
          num_queries: images that were learnt from already, whatever the ledger still has of them.
        """
        known = self.ledger.num_answered(TRAINING, num_queries)
        return num_queries + known + self._budget - self.received

    def ask(self, account: int, position: int, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What was sent at a position of an account, and the answers.

        Args:
          account: of the ledger.
          position: the number of the first image.
          images: to send, uint8 [N, H, W, channels], unless some were sent at this position
            before: then these stand, to the last bit.

        Returns:
          Images [N, H, W, channels], and probabilities [N, K] or labels [N].

        Raises:
          Spent: the budget does not pay for it.
          UserError: the endpoint fails, or answers what is not agreed.
        """
        answers = self.ledger.answers(account, position)
        sent = self.ledger.images(account, position)
        if answers is None:
            self._afford(account, len(images))
            if sent is None:
                self.ledger.send(account, position, images)
                sent = images
            else:
                self.ledger.send_again(account, len(sent))
            endpoint = self._endpoint
            if account == UNDEFENDED and self._undefended:
                endpoint = self._undefended
            answers = endpoint.ask(sent, lambda num: self._send_again(account, num))
            self.ledger.answer(account, position, answers)
        if sent is None or len(sent) != len(images):
            raise AssertionError(f"position {position} of account {account} holds another batch")
        return sent, answers

    def adopt(self, account: int, images: np.ndarray, answers: np.ndarray, *, at_once: int) -> None:
        """Takes over answers that are known already, in batches; nothing is sent or counted."""
        for i in range(0, len(images), at_once):
            batch = images[i : i + at_once]
            if self.ledger.images(account, i) is None:
                self.ledger.send(account, i, batch)
                self.ledger.send_again(account, -len(batch))
                self.ledger.answer(account, i, answers[i : i + at_once])

    def _send_again(self, account: int, num: int) -> None:
        if num >= 0:
            self._check_stop()
            self._afford(account, num)
        if num:
            self.ledger.send_again(account, num)

    def _afford(self, account: int, num: int) -> None:
        if account not in UNPAID and self.received + num > self._budget:
            raise Spent
