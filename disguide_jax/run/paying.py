"""An endpoint in a run: behind its ledger, asked in the order of rounds, and tested on."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from disguide_jax.core import pixels, shapes, stages, streams
from disguide_jax.core.answers import to_labels
from disguide_jax.core.exchange import Trade
from disguide_jax.core.types import Stage
from disguide_jax.errors import Stopped
from disguide_jax.files import datasets, transfer
from disguide_jax.files.ledger import FIDELITY, TEST, TRAINING, UNDEFENDED, Format, Ledger
from disguide_jax.run import evaluate
from disguide_jax.run.asked import num_fidelity_images
from disguide_jax.run.program import Program
from disguide_jax.victims.defences import Defended, DefendedEndpoint, Traced
from disguide_jax.victims.paid import Paid

ASKED_AT_ONCE = 256  # test images, of an endpoint


@contextlib.contextmanager
def opened(
    program: Program, workdir: pathlib.Path, received: Sequence[int], stop: Sequence[int]
) -> Iterator[Paid | None]:
    """The victim behind the ledger of a workdir; None where it is a network at hand.

    Args:
      program: of the run.
      workdir: of the run.
      received: what the last checkpoint knows to have been sent, by account.
      stop: filled when the run should end.

    Raises:
      UserError: the ledger cannot be used.
    """
    victim = program.victim
    if isinstance(victim, Traced):
        yield None
        return
    undefended = victim.undefended if isinstance(victim, DefendedEndpoint) else None
    task, answers = program.kit.task, program.kit.answers
    kept = Format(
        (task.size, task.size, task.channels),
        answers.shape(task.num_classes),
        answers.dtype.name,
    )

    def check_stop() -> None:
        if stop:
            raise Stopped(stop[0], "a request that was not answered")

    with contextlib.closing(victim), Ledger(workdir / "ledger", kept) as ledger:
        for account, num in enumerate(received):
            ledger.expect(account, num)
        budget = program.config.query_budget
        yield Paid(victim, ledger, budget=budget, check_stop=check_stop, undefended=undefended)


def payable_stages(program: Program, paid: Paid | None, num_queries: int) -> tuple[Stage, ...]:
    """What the budget pays for of the stages, were images sent to an endpoint more than once.

    The images that measure fidelity have been paid for.
    """
    if paid is None:
        return program.stages
    return stages.paid_for(program.stages, paid.payable(num_queries))


def make_trade(paid: Paid, num_queries: int) -> Trade:
    """The victim of rounds on the host, after so many training images."""
    position = num_queries

    def trade(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nonlocal position
        traded = paid.ask(TRAINING, position, images)
        position += len(images)
        return traded

    return trade


def make_test_set(program: Program, paid: Paid | None = None) -> evaluate.TestSet:
    """The images that clones are tested on, and what the victim says of them.

    Of a victim behind a defence that is what it says without and with it. Without a data set the
    images are random shapes, whose true labels nobody knows.

    Raises:
      UserError: the data set is absent or damaged, or the victim does not answer.
    """
    config, task = program.config, program.kit.task
    if paid is None:
        victim = program.network_victim
        test = datasets.load(config.dataset, "test", config.data_dir)
        answered = evaluate.labels_of(victim, test.images)
        if not isinstance(victim, Defended):
            return evaluate.make_test_set(*test, answered)
        own = evaluate.labels_of(victim.undefended, test.images)
        return evaluate.make_test_set(*test, own, answered)
    known = transfer.load(config.offline.queries) if program.method.learns_from_file else None
    if config.dataset:
        images, labels = datasets.load(config.dataset, "test", config.data_dir)
        account = TEST
    elif known:
        images, labels, account = known.test_images, None, FIDELITY
    else:
        key = jax.random.fold_in(jax.random.key(config.seed), streams.FIDELITY)
        num = num_fidelity_images(config)
        drawn = jax.jit(lambda: shapes.draw(key, num, task.size, task.channels))()
        images = np.asarray(pixels.encode(drawn, jnp.dtype(jnp.uint8)))
        labels, account = None, FIDELITY
    if known and np.array_equal(images, known.test_images):
        paid.adopt(account, images, known.test_answers, at_once=ASKED_AT_ONCE)

    def named(account: int) -> np.ndarray:
        answers = [
            to_labels(jnp.asarray(paid.ask(account, i, images[i : i + ASKED_AT_ONCE])[1]))
            for i in range(0, len(images), ASKED_AT_ONCE)
        ]
        return np.concatenate(answers)

    if not isinstance(program.victim, DefendedEndpoint):
        return evaluate.make_test_set(images, labels, named(account))
    return evaluate.make_test_set(images, labels, named(UNDEFENDED), named(account))
