"""What a configuration says of answers: what defends them, and the clones' loss on them."""

from disguide_jax.config import OF_ANSWERS, Config
from disguide_jax.core import answers
from disguide_jax.errors import UserError
from disguide_jax.settings import get_value, refuse_ignored
from disguide_jax.victims.defences import DEFENCES, Kind


def ignored(config: Config) -> tuple[tuple[str, ...], str]:
    """The keys of learning from answers that this kind makes no use of, and the kind in words."""
    if config.labels == "hard":
        return ("clones.temperature", "clones.top_classes"), "learning from hard labels"
    soft_loss = config.clones.soft_loss
    other = "clones.temperature" if soft_loss == "l1" else "clones.top_classes"
    of_labels = ("clones.label_smoothing", "clones.boundary_weight")
    return (*of_labels, other), f"learning from soft labels by {soft_loss}"


def defence_of(config: Config) -> Kind | None:
    """The configured defence; None where there is none.

    Raises:
      UserError: there is no such defence, it cannot defend what the victim answers with, or its
        numbers are missing.
    """
    name = config.victim.defence
    if not name:
        return None
    if name not in DEFENCES:
        raise UserError(
            f"config.victim.defence is {name!r}; it must be one of {', '.join(DEFENCES)}, or empty"
        )
    kind = DEFENCES[name]
    possible = kind.changes(config.victim)
    if config.labels not in possible:
        why = "is labels" if config.labels == "soft" else "would be the same label as without it"
        others = (k.name for k in DEFENCES.values() if config.labels in k.changes(config.victim))
        raise UserError(
            f"config.victim.defence is {name!r}, whose answer {why}, and config.labels is "
            f"{config.labels!r}: set config.labels={possible[0]}, or choose a defence among "
            f"{', '.join(others)}"
        )
    for key in kind.usual:
        if get_value(config.victim, key) == 0:
            raise UserError(
                f"config.victim.{key} is 0; with config.victim.defence={name} it must be at least 1"
            )
    if kind.learns and not config.dataset:
        raise UserError(
            f"config.victim.defence is {name!r}, which learns from labelled images: it needs a "
            "data set, and config.dataset is empty"
        )
    return kind


def refuse_unused(config: Config) -> None:
    """Refuses numbers of defences that are not there.

    Raises:
      UserError: names the first of them.
    """
    chosen, victim = defence_of(config), config.victim
    keys = {f"victim.{key}" for kind in DEFENCES.values() for key in kind.keys}
    if victim.endpoint or not chosen:  # they tell of an endpoint, too, or `validate` has looked
        keys -= set(OF_ANSWERS)
    keys -= {f"victim.{key}" for key in chosen.keys} if chosen else set()
    by = f"the defence {chosen.name}" if chosen else "a victim without a defence"
    refuse_ignored(config, tuple(keys), by)


def make_answers(config: Config, num_classes: int) -> answers.Answers:
    """The kind of answers that the victim is asked for.

    Raises:
      UserError: clones are to learn more classes than there are.
    """
    clones = config.clones
    if config.labels == "hard":
        return answers.hard(
            smoothing=clones.label_smoothing, boundary_weight=clones.boundary_weight
        )
    if clones.top_classes > num_classes:
        raise UserError(
            f"config.clones.top_classes is {clones.top_classes}; {config.dataset} has "
            f"{num_classes} classes"
        )
    loss = answers.SOFT_LOSSES[clones.soft_loss](clones.prob_floor)
    if clones.top_classes:
        loss = answers.top_l1(clones.prob_floor, clones.top_classes)
    return answers.soft(answers.at_temperature(loss, clones.temperature))
