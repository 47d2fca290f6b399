"""Where a round stands among the stages of a run, and what has been spent by then."""

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


def queries_after(stages: tuple[Stage, ...], num_rounds: int) -> int:
    """Images that the victim must have been sent when so many rounds are done."""
    queries = 0
    for stage in stages:
        done = min(num_rounds, stage.num_rounds)
        queries += done * stage.queries
        num_rounds -= done
    return queries
