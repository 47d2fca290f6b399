"""Detectors on an extraction: at which query they sound an alarm, and how often without need.

What an endpoint was sent lies in the ledger, in order, and is read from there. Of a victim whose
weights are at hand nothing keeps all that it was sent: the replay forgets, and some queries never
get into it. There the rounds are played again from the start, in the same order from the same
seed, around a victim on the host, so that every image passes by: the same run but for rounding,
whatever its method, which can be watched without being finished, and ends with the last alarm.
"""

import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from disguide_jax.core import pixels
from disguide_jax.core.answers import to_labels
from disguide_jax.core.types import Array
from disguide_jax.errors import UserError
from disguide_jax.files import datasets, workdir
from disguide_jax.files.ledger import TEST, TRAINING, UNDEFENDED, Ledger
from disguide_jax.run import asked
from disguide_jax.run import program as programs
from disguide_jax.run.compiled import FunctionsOf, compiled
from disguide_jax.run.program import Program
from disguide_jax.victims.defences import Defended, Traced
from disguide_jax.victims.detectors import DETECTORS, Alarm, Detector, Real

Stream = Iterable[tuple[np.ndarray, np.ndarray]]  # images as sent, and their classes, in order
ORDERS = 20  # in which real images are shown, unless told otherwise
# Rounds that every image passes by.
AROUND = functools.partial(compiled, around_victim=True)
MOST_REAL = 2_000  # images that detectors are calibrated on, or tried on


class Prepared(NamedTuple):
    """Detectors that are calibrated, and what they make of real images, by name."""

    makers: dict[str, Callable[[], Detector]]
    false_alarms: dict[str, list[Alarm | None]]  # for each random order
    num_real: int


class Watched(NamedTuple):
    """What a detector made of a stream of queries, and of real images."""

    alarm: Alarm | None
    num_queries: int  # that it was shown at most
    false_alarms: list[Alarm | None]  # on real images, for each random order
    num_real: int  # of these images; 0: there are none, and it is not calibrated either

    def __str__(self) -> str:
        alarm = f"no alarm in {self.num_queries:,} queries"
        if self.alarm:
            alarm = f"alarm at query {self.alarm.query:,}: {self.alarm.why}"
        if not self.num_real:
            return f"{alarm}; not calibrated, for there are no real images"
        false = [found.query for found in self.false_alarms if found]
        first = f", the first at query {min(false):,}" if false else ""
        orders = f"{len(self.false_alarms)} random orders"
        return f"{alarm}; {self.num_real:,} real images in {orders}: {len(false)} alarms{first}"


def watch(
    stream: Stream, detectors: Mapping[str, Detector], *, most: int | None = None
) -> tuple[dict[str, Alarm | None], int]:
    """Shows a stream to detectors until all have sounded an alarm, or it ends.

    Args:
      stream: of queries.
      detectors: by name.
      most: queries that are looked at; None: all.

    Returns:
      The first alarms by name, and how many queries were looked at.
    """
    alarms: dict[str, Alarm | None] = dict.fromkeys(detectors)
    num_seen = 0
    for images, labels in stream:
        left = len(labels) if most is None else min(len(labels), most - num_seen)
        for name, detector in detectors.items():
            alarms[name] = alarms[name] or detector.observe(images[:left], labels[:left])
        num_seen += left
        if all(alarms.values()) or num_seen == most:
            break
    return alarms, num_seen


def false_alarms(make: Callable[[], Detector], real: Real, *, orders: int) -> list[Alarm | None]:
    """The first alarm of fresh detectors on real images, for each of some random orders."""
    found = []
    for seed in range(orders):
        # Other orders than those of a calibration, should the images be the same.
        order = np.random.default_rng([1, seed]).permutation(len(real.labels))
        found.append(make().observe(real.images[order], real.labels[order]))
    return found


def queries(
    program: Program, functions_of: FunctionsOf = AROUND
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What a run sends to its victim, from the start, and the victim's classes without a defence.

    Args:
      program: of the run.
      functions_of: gives rounds that are compiled around the victim; those that have played the
        run play the same again.

    Raises:
      UserError: the victim is an endpoint, which is not asked again.
    """
    victim, sent = program.network_victim, list[tuple[np.ndarray, np.ndarray]]()

    @jax.jit
    def ask(victim: Traced, images: Array) -> tuple[Array, Array]:
        floats = pixels.decode(images)
        own = victim.undefended if isinstance(victim, Defended) else victim
        return victim(floats), to_labels(own(floats))

    def trade(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answers, labels = ask(victim, images)
        sent.append((images, np.asarray(labels)))
        return images, np.asarray(answers)

    functions = functions_of(program)
    state = functions.start(jax.random.key(program.config.seed))
    for stage in program.stages:
        play = functions.rounds[stage.name]
        for _ in range(stage.num_rounds):
            state, _ = play(state, trade)
            yield from sent
            sent.clear()


def recorded(ledger: Ledger, account: int = TRAINING) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What an endpoint was sent, and the classes that were answered, in order."""
    for _, images, answers in ledger.answered(account):
        yield images, np.asarray(to_labels(jnp.asarray(answers)))


def real_images(program: Program) -> tuple[Real, Real]:
    """Real images as a victim at hand sees them: to calibrate detectors, and to try them on.

    They are training and test images or, where there are no training images, halves of these.
    """
    config, victim = program.config, program.network_victim
    plain = victim.undefended if isinstance(victim, Defended) else victim

    @jax.jit
    def seen(victim: Traced, images: Array) -> tuple[Array, Array]:
        given = victim.to_input_space(pixels.decode(images))
        return given, to_labels(victim(given))

    def real(images: np.ndarray) -> Real:
        images = images[:MOST_REAL]
        parts = [seen(plain, images[i : i + 100]) for i in range(0, len(images), 100)]
        given, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Real(given, labels, program.kit.task.num_classes)

    test = datasets.load(config.dataset, "test", config.data_dir).images
    try:
        train = datasets.load(config.dataset, "train", config.data_dir).images
    except UserError:
        return real(test[: len(test) // 2]), real(test[len(test) // 2 :])
    return real(train), real(test)


def prepare(known: tuple[Real, Real], *, orders: int = ORDERS) -> Prepared:
    """Calibrates every detector of the table, and tries it on real images.

    It is the same for all runs with one victim.

    Args:
      known: real images to calibrate with, and to try on; none where there are none.
      orders: in which the latter are shown.
    """
    makers = {name: kind.calibrate(known[0]) for name, kind in DETECTORS.items()}
    num_real = len(known[1].labels)
    false = {
        name: false_alarms(make, known[1], orders=orders if num_real else 0)
        for name, make in makers.items()
    }
    return Prepared(makers, false, num_real)


def judge(stream: Stream, prepared: Prepared, *, most: int | None = None) -> dict[str, Watched]:
    """What every detector makes of a stream of queries, of which `most` are looked at, or all."""
    alarms, num = watch(stream, {name: make() for name, make in prepared.makers.items()}, most=most)
    return {
        name: Watched(alarms[name], num, false, prepared.num_real)
        for name, false in prepared.false_alarms.items()
    }


def judge_workdir(
    place: pathlib.Path, *, most: int | None = None, orders: int = ORDERS
) -> dict[str, Watched]:
    """What detectors make of the run in a workdir, as far as it came if it has a ledger.

    Args:
      place: the workdir.
      most: queries that are looked at; None: all.
      orders: in which real images are shown.

    Raises:
      UserError: there is none, or its victim or its images have changed.
    """
    config, contents = workdir.config_of(place)
    if config.victim.endpoint:
        num_classes = asked.describe(config).num_classes
        with workdir.lock(place), Ledger.opened(place / "ledger") as ledger:
            known = answered_images(ledger, num_classes)
            return judge(recorded(ledger), prepare(known, orders=orders), most=most)
    now, places = asked.contents_of(config), asked.places_of(config)
    workdir.refuse_other_contents(contents, now, places, place)
    config.devices = 1  # whatever it was played on
    program = programs.build(config)
    return judge(queries(program), prepare(real_images(program), orders=orders), most=most)


def answered_images(ledger: Ledger, num_classes: int) -> tuple[Real, Real]:
    """Test images that an endpoint has answered, in halves; none without a data set."""
    own = UNDEFENDED if ledger.received[UNDEFENDED] and ledger.received[TEST] else TEST
    batches = list(recorded(ledger, own))
    images = np.concatenate(
        [np.empty((0, *ledger.format.image), np.uint8), *(images for images, _ in batches)]
    )
    labels = np.concatenate([np.empty(0, np.int32), *(labels for _, labels in batches)])
    halves = np.array_split(np.arange(min(len(labels), 2 * MOST_REAL)), 2)
    first, second = (Real(images[half], labels[half], num_classes) for half in halves)
    return first, second
