"""Where a round stands among the stages of a run, and what has been spent by then."""

import math

from disguide_jax.core.types import Stage


def total(stages: tuple[Stage, ...]) -> int:
    """Rounds of all stages."""
    return sum(stage.num_rounds for stage in stages)


def stage_at(stages: tuple[Stage, ...], round_: int) -> tuple[Stage, int]:
    """The stage that a round belongs to, and that stage's first round."""
    first = 0
    for stage in stages:
        if round_ < first + stage.num_rounds:
            return stage, first
        first += stage.num_rounds
    raise ValueError(f"round {round_} of {first}")


def paid_for(stages: tuple[Stage, ...], queries: int) -> tuple[Stage, ...]:
    """The rounds that so many queries pay for, from the first on."""
    played = []
    for stage in stages:
        num_rounds = min(stage.num_rounds, queries // stage.queries if stage.queries else math.inf)
        played.append(stage._replace(num_rounds=int(num_rounds)))
        queries -= played[-1].num_rounds * stage.queries
        if num_rounds < stage.num_rounds:
            break
    return tuple(played)


def queries_after(stages: tuple[Stage, ...], num_rounds: int) -> int:
    """Images that the victim must have been sent when so many rounds are done."""
    queries = 0
    for stage in stages:
        done = min(num_rounds, stage.num_rounds)
        queries += done * stage.queries
        num_rounds -= done
    return queries
