"""What a configuration says of answers, turned into the clones' loss on them."""

from disguide_jax.config import Config
from disguide_jax.core import answers
from disguide_jax.errors import UserError


def ignored(config: Config) -> tuple[tuple[str, ...], str]:
    """The keys of learning from answers that this kind makes no use of, and the kind in words."""
    if config.labels == "hard":
        return ("clones.temperature", "clones.top_classes"), "learning from hard labels"
    soft_loss = config.clones.soft_loss
    other = "clones.temperature" if soft_loss == "l1" else "clones.top_classes"
    of_labels = ("clones.label_smoothing", "clones.boundary_weight")
    return (*of_labels, other), f"learning from soft labels by {soft_loss}"


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
