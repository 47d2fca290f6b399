"""What a finished extraction leaves: summary.json and the networks."""

import json
import pathlib
from typing import Any

import jax

from disguide_jax.config import to_dict
from disguide_jax.core.types import TrainState, Variables
from disguide_jax.files import weights
from disguide_jax.files.workdir import provenance
from disguide_jax.run import answering, copies, evaluate
from disguide_jax.run.program import Program
from disguide_jax.run.progress import Progress
from disguide_jax.victims.paid import Paid


def summarise(
    program: Program,
    state: TrainState,
    progress: Progress,
    scores: evaluate.Scores,
    test_set: evaluate.TestSet,
    paid: Paid | None,
) -> dict[str, Any]:
    """The content of summary.json.

    Args:
      program: of the run.
      state: the last.
      progress: what the host knows.
      scores: of the final clones.
      test_set: that they are scored on.
      paid: the ledger's side of an endpoint; None where the victim is a network at hand.
    """
    clones, config = program.method.result(state), program.config
    queries = paid.received if paid else int(state.queries)
    known, kind = scores.labelled, answering.defence_of(config)
    return {
        "config": to_dict(config),
        "method": config.method,
        "seed": config.seed,
        "query_budget": config.query_budget,
        "queries": queries,
        "rounds": int(state.round),
        "evaluation_queries": paid.received_for_tests if paid else None,
        "victim_accuracy": evaluate.victim_accuracy(test_set),
        "defence": kind.about(config.victim) if kind else None,
        "defended_victim_accuracy": evaluate.defended_accuracy(test_set),
        "soft_vote_accuracy": scores.soft_vote_accuracy if known else None,
        "hard_vote_accuracy": scores.hard_vote_accuracy if known else None,
        "clone_accuracy": scores.clone_accuracy.tolist() if known else None,
        "max_soft_vote_accuracy": progress.max_soft_vote_accuracy if known else None,
        "fidelity": scores.fidelity,
        "queries_to": progress.queries_to,
        "wall_seconds": progress.wall_seconds,
        "queries_per_second": queries / progress.wall_seconds,
        "clones_sha256": clones_sha256(clones),
        **provenance(),
    }


def save_networks(program: Program, state: TrainState, workdir: pathlib.Path) -> None:
    """Writes clones/clone_0.safetensors, ... and generator.safetensors, PyTorch's names.

    Several generators are generator_0.safetensors, ...
    """
    config, task = program.config, program.kit.task
    metadata = {"dataset": config.dataset, "queries": str(int(state.queries))}
    own = copies.own_normalisation(to_dict(config)["victim"], task.channels)
    how = {name: json.dumps(values) for name, values in zip(("mean", "std"), own, strict=True)}
    (workdir / "clones").mkdir(exist_ok=True)
    for i, clone in enumerate(unstack(program.method.result(state))):
        weights.save_state_dict(
            workdir / "clones" / f"clone_{i}.safetensors",
            weights.to_state_dict(clone),
            # So that it can be a victim, too.
            metadata | how | {"model": config.clones.model, "width": str(config.clones.width)},
        )
    generators = {"generator": jax.device_get(state.generator.variables)}
    if config.generator.count > 1:
        single = unstack(state.generator.variables)
        generators = {f"generator_{i}": generator for i, generator in enumerate(single)}
    for name, generator in generators.items():
        weights.save_state_dict(
            workdir / f"{name}.safetensors",
            weights.to_state_dict(generator),
            metadata | {"model": "generator"},
        )


def unstack(stacked: Variables) -> list[Variables]:
    """Stacked networks as single ones of NumPy arrays."""
    stacked = jax.device_get(stacked)
    num = len(jax.tree.leaves(stacked)[0])
    return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(num)]


def clones_sha256(clones: Variables) -> str:
    """One hash over names, shapes, types and bytes of all clone arrays."""
    return weights.fingerprint(weights.to_state_dict(clone) for clone in unstack(clones))


def report(summary: dict[str, Any]) -> str:
    """The end of a run in a few lines."""
    defence, behind = summary["defence"], summary["defended_victim_accuracy"]
    without = " without its defence" if defence else ""
    lines = [f"fidelity   {summary['fidelity']:.4f}{' to the victim' if defence else ''}{without}"]
    soft_vote, victim_accuracy = summary["soft_vote_accuracy"], summary["victim_accuracy"]
    if soft_vote is not None:
        clones = ", ".join(f"{a:.4f}" for a in summary["clone_accuracy"])
        share = f"{soft_vote / victim_accuracy:.1%} of " if victim_accuracy else ""
        lines.insert(
            0,
            f"soft vote  {soft_vote:.4f}, {share}the victim's {victim_accuracy:.4f}"
            f"{without} (clones {clones}; "
            f"maximum {summary['max_soft_vote_accuracy']:.4f})",
        )
    if defence:
        lines.append(f"defence    {defence}")
    if behind is not None:
        lines.append(f"its price  the victim has {behind:.4f} behind it")
    lines.append(
        f"queries    {summary['queries']:,} of {summary['query_budget']:,}, "
        f"{summary['queries_per_second']:,.0f} a second, {summary['wall_seconds']:.0f} s"
    )
    if summary["evaluation_queries"]:
        lines.append(f"tested     with {summary['evaluation_queries']:,} images beside the budget")
    if by := summary["config"]["victim"]["authorised_by"]:
        lines.append(f"allowed    by {by}")
    return "\n".join(lines)
