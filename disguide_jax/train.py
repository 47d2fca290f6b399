"""One extraction from start to summary: build, continue, play rounds, log, evaluate, save.

The only place with time and files. What a run leaves in its workdir is listed in the README.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from disguide_jax import (
    checkpoint,
    convert,
    evaluate,
    guard,
    losses,
    pictures,
    plan,
    steps,
    updates,
    writers,
)
from disguide_jax.config import Config, to_dict, validate
from disguide_jax.errors import UserError, disk_errors
from disguide_jax.state import Array, Net, Optimizers, Stage, TrainState, Variables

MILESTONES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
NUM_SAMPLES = 64
SECONDS_BETWEEN_PICTURES = 60  # at least, until the last one
SAMPLES = 2**31 - 1  # the stream of latent vectors behind samples/, apart from all rounds


class Stopped(Exception):  # noqa: N818
    """The run was asked to stop and is saved; `signum` is the signal that asked."""

    def __init__(self, signum: int, queries: int):
        super().__init__(f"Stopped after {queries:,} queries; everything is saved.")
        self.signum = signum


@dataclasses.dataclass
class Progress:
    """What the host adds up between two checkpoints, and saves with each."""

    log_bytes: int = 0
    answered: list[int] = dataclasses.field(default_factory=list)  # by class, when last logged
    symptoms: dict[str, int] = dataclasses.field(default_factory=dict)  # see guard.count
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    summed_rounds: int = 0
    max_soft_vote_accuracy: float = 0.0
    queries_to: dict[str, int | None] = dataclasses.field(
        default_factory=lambda: {f"{m:g}": None for m in MILESTONES}
    )
    wall_seconds: float = 0.0


def train_and_evaluate(config: Config, workdir: pathlib.Path, *, extend: bool = False) -> dict:
    """Runs an extraction, or continues the one that `workdir` holds, to its summary.

    Args:
      config: of the run.
      workdir: made if absent. A finished one is left as it is.
      extend: accept a larger budget than the workdir was started with.

    Returns:
      What `summary.json` holds.

    Raises:
      UserError: a mistake in the configuration, the files or the machine; the workdir holds
        nothing new that looks like a result.
      Stopped: SIGTERM or SIGINT came; the run is saved.
    """
    validate(config)
    steps.stages(config)
    workdir = pathlib.Path(workdir)
    summary_path = workdir / "summary.json"
    started_with = plan.read_started_config(workdir)
    if started_with is not None:
        plan.refuse_other_config(started_with, config, workdir, extend=extend)
        if summary_path.exists() and (started_with["query_budget"] == config.query_budget):
            print(f"{workdir} is finished: see {summary_path}. Nothing to do.")
            return json.loads(summary_path.read_text())

    run = plan.build(config)
    plan.check_fits(run, workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir: cannot make {workdir}: {error.strerror}") from error
    with (
        disk_errors(workdir),
        checkpoint.lock(workdir),
        checkpoint.Checkpoints(workdir / "checkpoints") as saved,
    ):
        restored = saved.restore(run.template)
        print(plan.describe(run, workdir), flush=True)
        if restored is None:
            state, progress = _init(run), Progress()
        else:
            state, progress = restored[0], Progress(**restored[1])
            print(f"continues after {int(state.queries):,} queries", flush=True)
        summary_path.unlink(missing_ok=True)  # of the smaller budget, when extending
        writers.write_json(workdir / "config.json", plan.provenance(config))
        state, progress, scores = play(run, state, progress, saved, workdir)
        summary = summarise(run, state, progress, scores)
        save_networks(run, state, workdir)
        writers.write_json(summary_path, summary)
    print(report(summary), flush=True)
    return summary


def play(
    run: plan.Run,
    state: TrainState,
    progress: Progress,
    saved: checkpoint.Checkpoints,
    workdir: pathlib.Path,
) -> tuple[TrainState, Progress, evaluate.Scores]:
    """Plays the rounds that are left; logs, evaluates and saves on the way.

    One call is always under way on the device while the host looks at the metrics of the one
    before. Events fall on multiples of their interval, counted from the stage's first round,
    and on its last, so that a run that was interrupted has them where one that was not has
    them.

    Raises:
      AssertionError: the victim was not sent what the method states that it sends.
    """
    config = run.config
    train_calls = {
        stage: steps.make_train_call(
            steps.make_train_step(
                config, run.networks, run.tx, channels=run.victim_model.channels, stage=stage
            ),
            looped=run.rounds_per_call > 0,
        )
        for stage in run.stages
    }
    rates = {stage: steps.make_optimizers(config, stage) for stage in run.stages}
    score = evaluate.make_evaluate(run.networks.exact_clones, run.victim)
    sample = make_sample(run)
    start_again = jax.jit(
        functools.partial(steps.restart, run.networks, run.tx), static_argnames="clones_too"
    )

    overview = Overview(workdir, evaluate.victim_accuracy(run.test_set))
    round_ = int(state.round)
    spent = steps.queries_after(run.stages, round_)
    clock = Clock(progress.wall_seconds, spent)
    scores: evaluate.Scores | None = None
    under_way: list[tuple[int, Any]] = []  # round before the call, what it returned

    log = writers.MetricsLog(workdir, num_bytes=progress.log_bytes, queries=spent)
    shown = writers.Progress(total=run.queries, done=spent)
    with contextlib.closing(log), contextlib.closing(shown), stop_requests() as stop:
        while round_ < run.num_rounds:
            stage, first = steps.stage_at(run.stages, round_)
            every, last = event_intervals(config, stage), first + stage.num_rounds
            if run.rounds_per_call:
                intervals = (*every.values(), run.rounds_per_call)
                until = min(last, *(first + ((round_ - first) // n + 1) * n for n in intervals))
            else:
                until = round_ + 1
            state, *returned = train_calls[stage](state, run.victim, until - round_)
            under_way.append((round_, returned))
            if len(under_way) > 1:
                absorb(progress, *under_way.pop(0))
            round_ = until
            spent = steps.queries_after(run.stages, round_)
            shown.advance(spent)

            finished = round_ == run.num_rounds
            line: dict[str, Any] = {}
            due = {e for e, n in every.items() if (round_ - first) % n == 0 or round_ == last}
            if due or stop:
                while under_way:
                    absorb(progress, *under_way.pop(0))
                if int(state.queries) != spent:
                    raise AssertionError(
                        f"round {round_}: the victim was sent {int(state.queries):,} images, but "
                        f"{config.method} states {spent:,}"
                    )
            stuck: list[str] = []
            if "log" in due:
                line |= averages_line(progress)
                line |= answers_line(progress, jax.device_get(state.answered))
                line |= sampled_line(run, state, sample(state)) | line
                line |= rates_line(rates[stage], line, round_ - first)
                line |= steps.report(config, state)
                line |= clock.line(spent)
                stuck = judge(config, progress, line)
            if "evaluate" in due:
                scores = score(steps.result(config, state), run.test_set)
                line |= scores_line(scores)
                note_scores(progress, scores, spent)
                (workdir / "samples").mkdir(exist_ok=True)
                pictures.save_image_grid(workdir / "samples" / f"{spent:09}.png", sample(state))
            if line:
                if len(run.stages) > 1:
                    line = {
                        "stage": stage.name,
                        "stage/share": (round_ - first) / stage.num_rounds,
                    } | line
                line = {"round": round_} | line
                log.write(spent, line)
                shown.report(spent, line)
            if stuck:
                shown.say(f"guard: {guard.explain(stuck)}, after {spent:,} queries")
            if stuck and config.guard == "restart":
                state = start_again(state, clones_too="agreement" in stuck)
                progress.symptoms = {}
            give_up = bool(stuck) and config.guard == "stop" and not finished
            if "checkpoint" in due or stop or give_up:
                progress.wall_seconds, progress.log_bytes = clock.wall_seconds(), log.sync()
                saved.save(state, dataclasses.asdict(progress))
                overview.draw(at_once=finished)
            if give_up:
                saved.wait()
                raise UserError(
                    f"the run is stuck: {guard.explain(stuck)}. It stops after {spent:,} queries, "
                    "and everything is saved. Continue with the same command and "
                    "--config.guard=restart, which makes anew what is stuck, or =warn."
                )
            if stop and not finished:
                saved.wait()
                raise Stopped(stop[0], spent)
    saved.wait()
    if scores is None:  # all rounds were played before
        scores = score(steps.result(config, state), run.test_set)
    return state, progress, scores


class Clock:
    """The seconds a run has taken, with those before a restart, and its speed."""

    def __init__(self, seconds_before: float, queries: int):
        self._start = time.perf_counter() - seconds_before
        self._last = time.perf_counter(), queries

    def wall_seconds(self) -> float:
        """Since the run began, without the time it was not running."""
        return time.perf_counter() - self._start

    def line(self, queries: int) -> dict[str, float]:
        """What the log says of time; the speed is that since the line before."""
        (then, queries_then), self._last = self._last, (time.perf_counter(), queries)
        return {
            "time/queries_per_second": (queries - queries_then) / (self._last[0] - then),
            "time/wall_seconds": self.wall_seconds(),
        }


class Overview:
    """Draws WORKDIR/overview.png, not at every checkpoint: it takes half a second."""

    def __init__(self, workdir: pathlib.Path, victim_accuracy: float):
        self._workdir, self._victim_accuracy = workdir, victim_accuracy
        self._drawn = time.perf_counter()

    def draw(self, *, at_once: bool) -> None:
        """If asked to at once, or the last one is SECONDS_BETWEEN_PICTURES old."""
        if at_once or time.perf_counter() - self._drawn > SECONDS_BETWEEN_PICTURES:
            pictures.save_overview(self._workdir, victim_accuracy=self._victim_accuracy)
            self._drawn = time.perf_counter()


def event_intervals(config: Config, stage: Stage) -> dict[str, int]:
    """Rounds between two events; where rounds send nothing, a batch made counts as one sent."""
    in_round = stage.queries_per_round or config.batch_size
    return {
        "log": max(1, config.log_every_queries // in_round),
        "evaluate": max(1, config.evaluate_every_queries // in_round),
        "checkpoint": max(1, config.checkpoint_every_queries // in_round),
    }


def absorb(progress: Progress, round_before: int, returned: list) -> None:
    """Adds the metrics of one call to the sums.

    Raises:
      UserError: one of them is not finite; names the round and the metric.
    """
    sums, played = jax.device_get(returned)
    for name, value in sums.items():
        if not np.isfinite(value):
            raise UserError(
                f"round {round_before + int(played)}: {name} is {value}. The run stops; the "
                "last checkpoint is from before and stays usable. A smaller "
                "clones.learning_rate or generator.learning_rate may help, in a new --workdir."
            )
        progress.sums[name] = progress.sums.get(name, 0.0) + float(value)
    progress.summed_rounds += int(played)


def averages_line(progress: Progress) -> dict[str, Any]:
    """The metrics' averages over the rounds since the last line of the log."""
    averages = {name: s / progress.summed_rounds for name, s in progress.sums.items()}
    progress.sums, progress.summed_rounds = {}, 0
    return averages


def sampled_line(run: plan.Run, state: TrainState, images: np.ndarray) -> dict[str, float]:
    """What the guard must see of any method: saturation of the samples, and the clones on them."""
    line = {"gen/saturation": float((np.abs(images) > guard.SATURATED).mean())}
    if run.config.num_clones > 1:
        line["gen/disagreement"] = float(
            sampled_disagreement(run.networks.exact_clones, steps.result(run.config, state), images)
        )
    return line


@functools.partial(jax.jit, static_argnums=0)
def sampled_disagreement(clones: Net, variables: Variables, images: Array) -> Array:
    """The clones' mean disagreement on images [N, H, W, channels], in eval mode, []."""
    logits, _ = clones.apply(variables, images, train=False)
    return losses.disagreement(jax.nn.softmax(logits)).mean()


def rates_line(tx: Optimizers, line: dict[str, Any], num_rounds: int) -> dict[str, float]:
    """The learning rates of the last of so many rounds, of the networks that learn in a line."""
    rates = {"gen": tx.generator_rate, "clones": tx.clones_rate}
    return {
        f"{name}/learning_rate": float(rate(num_rounds - 1))
        for name, rate in rates.items()
        if rate and f"{name}/loss" in line
    }


def judge(config: Config, progress: Progress, line: dict[str, Any]) -> list[str]:
    """The symptoms of a run that is stuck, which the line then names; see guard.py."""
    progress.symptoms = guard.count(progress.symptoms, line)
    stuck = guard.stuck(progress.symptoms)
    if config.guard == "warn":  # once while it lasts
        stuck = [name for name in stuck if progress.symptoms[name] == guard.PATIENCE]
    if stuck:
        line["guard/stuck"] = ", ".join(stuck)
    return stuck


def answers_line(progress: Progress, answered: np.ndarray) -> dict[str, Any]:
    """The share of each class among the answers since the last line of the log, if any came."""
    new = answered - np.array(progress.answered or [0])
    progress.answered = answered.tolist()
    return {"victim/class_share": (new / new.sum()).tolist()} if new.any() else {}


def scores_line(scores: evaluate.Scores) -> dict[str, Any]:
    """Scores under their names in the log."""
    return {
        "eval/soft_vote_accuracy": scores.soft_vote_accuracy,
        "eval/hard_vote_accuracy": scores.hard_vote_accuracy,
        "eval/clone_accuracy": scores.clone_accuracy.tolist(),
        "eval/fidelity": scores.fidelity,
    }


def note_scores(progress: Progress, scores: evaluate.Scores, queries: int) -> None:
    """Keeps the maximum and the first evaluation at which each milestone was reached."""
    accuracy = scores.soft_vote_accuracy
    progress.max_soft_vote_accuracy = max(progress.max_soft_vote_accuracy, accuracy)
    for milestone, reached in progress.queries_to.items():
        if reached is None and accuracy >= float(milestone):
            progress.queries_to[milestone] = queries


def make_sample(run: plan.Run) -> Callable[[TrainState], np.ndarray]:
    """A function from the state to images of always the same latent vectors."""

    @jax.jit
    def sample(key: jax.Array, generator: Variables) -> jax.Array:
        config, channels = run.config.generator, run.victim_model.channels
        key = jax.random.fold_in(key, SAMPLES)
        z, gray_channel = updates.draw_latent(key, NUM_SAMPLES, config.latent_dim, channels)
        images, _ = updates.generate(
            run.networks.generator,
            generator,
            z,
            gray_channel,
            gray_every=config.gray_every,
            train=False,
        )
        return images

    return lambda state: np.asarray(sample(state.key, state.generator))


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT append themselves to, so that a call can be finished.

    After the first one signals do again what they always do: a second one stops at once.
    """
    received: list[int] = []
    signals = (signal.SIGTERM, signal.SIGINT)

    def on_signal(signum: int, frame: Any) -> None:
        del frame
        received.append(signum)
        for each in signals:
            signal.signal(each, signal.SIG_DFL)
        print("\nStopping once this is saved; once more stops at once.", flush=True)

    try:
        before = {each: signal.signal(each, on_signal) for each in signals}
    except ValueError:  # not in the main thread: whoever runs us handles signals
        before = {}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def summarise(
    run: plan.Run, state: TrainState, progress: Progress, scores: evaluate.Scores
) -> dict[str, Any]:
    """The content of summary.json; `scores` are those of the final clones."""
    clones = steps.result(run.config, state)
    queries = int(state.queries)
    return {
        "config": to_dict(run.config),
        "method": run.config.method,
        "seed": run.config.seed,
        "query_budget": run.config.query_budget,
        "queries": queries,
        "rounds": int(state.round),
        "victim_accuracy": evaluate.victim_accuracy(run.test_set),
        "soft_vote_accuracy": scores.soft_vote_accuracy,
        "hard_vote_accuracy": scores.hard_vote_accuracy,
        "clone_accuracy": scores.clone_accuracy.tolist(),
        "max_soft_vote_accuracy": progress.max_soft_vote_accuracy,
        "fidelity": scores.fidelity,
        "queries_to": progress.queries_to,
        "wall_seconds": progress.wall_seconds,
        "queries_per_second": queries / progress.wall_seconds,
        "clones_sha256": clones_sha256(clones),
    }


def save_networks(run: plan.Run, state: TrainState, workdir: pathlib.Path) -> None:
    """Writes clones/clone_0.safetensors, ... and generator.safetensors, PyTorch's names."""
    config = run.config
    metadata = {"dataset": config.dataset, "queries": str(int(state.queries))}
    (workdir / "clones").mkdir(exist_ok=True)
    for i, clone in enumerate(unstack(steps.result(config, state))):
        convert.save_state_dict(
            workdir / "clones" / f"clone_{i}.safetensors",
            convert.to_state_dict(clone),
            metadata | {"model": config.clones.model},
        )
    convert.save_state_dict(
        workdir / "generator.safetensors",
        convert.to_state_dict(jax.device_get(state.generator)),
        metadata | {"model": "generator"},
    )


def unstack(clones: Variables) -> list[Variables]:
    """Stacked clones as single networks of NumPy arrays."""
    clones = jax.device_get(clones)
    num = len(jax.tree.leaves(clones)[0])
    return [jax.tree.map(lambda x, i=i: x[i], clones) for i in range(num)]


def clones_sha256(clones: Variables) -> str:
    """One hash over names, shapes, types and bytes of all clone arrays."""
    digest = hashlib.sha256()
    for clone in unstack(clones):
        for name, array in sorted(convert.to_state_dict(clone).items()):
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def report(summary: dict[str, Any]) -> str:
    """The end of a run in four lines."""
    clones = ", ".join(f"{a:.4f}" for a in summary["clone_accuracy"])
    victim_accuracy, soft_vote = summary["victim_accuracy"], summary["soft_vote_accuracy"]
    share = f"{soft_vote / victim_accuracy:.1%} of " if victim_accuracy else ""
    return (
        f"soft vote  {soft_vote:.4f}, {share}the victim's {victim_accuracy:.4f} "
        f"(clones {clones}; maximum {summary['max_soft_vote_accuracy']:.4f})\n"
        f"fidelity   {summary['fidelity']:.4f}\n"
        f"queries    {summary['queries']:,} of {summary['query_budget']:,}, "
        f"{summary['queries_per_second']:,.0f} a second, {summary['wall_seconds']:.0f} s"
    )


def _init(run: plan.Run) -> TrainState:
    """A fresh state on the device, made by one compiled call."""
    model = run.victim_model
    init = jax.jit(
        lambda: steps.init_state(
            run.config,
            run.networks,
            run.tx,
            num_classes=model.num_classes,
            channels=model.channels,
        )
    )
    return init()
