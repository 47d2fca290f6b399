"""The cells of an audit: an attack, a kind of answers and a defence, each run with all seeds."""

import copy
import dataclasses
import sys
from typing import NamedTuple

from disguide_jax.audit_config import AuditConfig
from disguide_jax.config import OF_ANSWERS, Config
from disguide_jax.errors import UserError
from disguide_jax.methods import METHODS
from disguide_jax.run import answering
from disguide_jax.run import program as programs
from disguide_jax.run.price import with_defence
from disguide_jax.settings import check_values, set_value, settings
from disguide_jax.study.auditing import bought
from disguide_jax.victims.defences import DEFENCES

LOGGED = 20  # evaluations of a run


class Cell(NamedTuple):
    """What is run with every seed of the audit."""

    attack: str
    answers: str
    defence: str = ""  # none
    loss: str = ""  # of the clones; "": the recipe's

    @property
    def slug(self) -> str:
        """The name of its folder."""
        return "-".join(filter(None, self))

    @property
    def attacker(self) -> str:
        """The attack as it is told from others."""
        return f"{self.attack} with {self.loss}" if self.loss else self.attack

    def __str__(self) -> str:
        behind = f" behind {self.defence}" if self.defence else ""
        return f"{self.attacker}, {self.answers} answers{behind}"


def spelled_out(config: AuditConfig) -> AuditConfig:
    """A copy in which names that a command line gives as a,b are single ones."""
    config = copy.deepcopy(config)
    for key in ("attacks", "answers", "defences", "adaptive_losses"):
        names = (name.strip() for text in getattr(config, key) for name in text.split(","))
        set_value(config, key, tuple(filter(None, names)))
    return config


def validate(config: AuditConfig) -> None:
    """Checks all that needs no file and concerns the whole audit.

    Raises:
      UserError: names the key, its value, and what would be right.
    """
    check_values(config)
    methods = [recipe.method for recipe in config.recipes]
    there = {
        "attacks": [*dict.fromkeys(methods), *bought.KINDS],
        "defences": list(DEFENCES),
    }
    for key, names in there.items():
        for name in getattr(config, key):
            if name not in names:
                raise UserError(f"config.{key} has {name!r}; those there are: {', '.join(names)}")
    if not config.attacks:
        raise UserError(f"config.attacks is empty; there are {', '.join(there['attacks'])}")
    if config.victim.input_space != "pre-transform":
        raise UserError(
            f"config.victim.input_space is {config.victim.input_space!r}; an audit sends images: "
            "'pre-transform'"
        )
    if config.victim.defence:
        raise UserError(
            f"config.victim.defence is {config.victim.defence!r}; an audit compares: name it in "
            "config.defences"
        )


def cells_of(config: AuditConfig) -> list[Cell]:
    """Every attack without a defence, then the first method against every defence.

    The first method is run on soft answers once more with each adaptive loss.
    """
    found = [Cell(attack, a) for a in config.answers for attack in config.attacks]
    method = tried_on_defences(config)
    if method is None:
        return found
    for defence in ("", *config.defences):
        if defence:
            found += [Cell(method, a, defence) for a in config.answers]
        found += [Cell(method, "soft", defence, loss) for loss in _other_losses(config, method)]
    return found


def _other_losses(config: AuditConfig, method: str) -> list[str]:
    """The adaptive losses that a method can learn by, and does not learn by anyway."""
    if "soft" not in config.answers:
        return []
    own = _recipe(config, Cell(method, "soft")).clones.soft_loss
    others = (loss for loss in config.adaptive_losses if loss != own)
    return [loss for loss in others if _can_be(config, Cell(method, "soft", loss=loss))]


def tried_on_defences(config: AuditConfig) -> str | None:
    """The attack that is tried against defences: the first method; None where there is none."""
    return next((name for name in config.attacks if name not in bought.KINDS), None)


def config_of(audit: AuditConfig, cell: Cell) -> Config:
    """The runs of a cell, with all seeds; of a baseline those of the method whose clones it takes.

    Raises:
      UserError: the cell cannot be; says why.
    """
    config = copy.deepcopy(_recipe(audit, cell))
    config.name = f"{audit.name}-{cell.slug}"
    config.labels, config.dataset, config.data_dir = cell.answers, audit.dataset, audit.data_dir
    config.query_budget, config.seeds = audit.query_budget, audit.seeds
    config.victim = copy.deepcopy(audit.victim)
    every = max(1, audit.query_budget // LOGGED)
    config.log_every_queries = config.evaluate_every_queries = every
    config.checkpoint_every_queries = max(1, audit.query_budget // 2)
    if METHODS[config.method].keeps_replay:
        config.replay.size = max(config.batch_size, min(config.replay.size, audit.query_budget))
    if cell.loss:  # without the numbers of others
        config.clones = dataclasses.replace(
            config.clones, soft_loss=cell.loss, temperature=1.0, top_classes=0
        )
    _forget_other_defences(config, cell.defence)
    if cell.defence:
        kind = DEFENCES[cell.defence]
        if cell.answers not in kind.changes(config.victim):
            raise UserError(
                f"the label behind {kind.name} is the same as without it: what hard answers give "
                "without a defence they give behind it"
                if cell.answers == "hard"
                else f"{kind.name} answers with labels alone: see hard answers behind it"
            )
        config = with_defence(config, kind)
        config.labels = cell.answers
    answering.defence_of(config)
    programs.stages_of(programs.resolve(dataclasses.replace(config, seeds=())))
    if cell.attack in bought.KINDS:
        bought.check(config, cell.attack)
    return config


def _recipe(audit: AuditConfig, cell: Cell) -> Config:
    """The settings for a method and a kind of answers, or at least those for the other kind."""
    method = cell.attack
    if method in bought.KINDS:
        method = tried_on_defences(audit) or audit.recipes[0].method
    found = [recipe for recipe in audit.recipes if recipe.method == method]
    return next((recipe for recipe in found if recipe.labels == cell.answers), found[0])


def _forget_other_defences(config: Config, name: str) -> None:
    """Resets the numbers of defences other than the named one, which a run refuses as unused."""
    known = settings(Config)
    for kind in DEFENCES.values():
        for key in (f"victim.{key}" for key in kind.keys):
            is_of_endpoint = config.victim.endpoint and key in OF_ANSWERS
            if kind.name != name and not is_of_endpoint:
                set_value(config, key, known[key].default)


def _can_be(audit: AuditConfig, cell: Cell) -> bool:
    try:
        config_of(audit, cell)
    except UserError:
        return False
    return True


def role(attack: str) -> str:
    """What an attack is beside others: "attack", "baseline" or "upper_bound"."""
    return bought.KINDS[attack].role if attack in bought.KINDS else "attack"


def learnt_from(attack: str) -> str:
    """The images of a baseline or an upper bound in words; "" of a method, which makes its own."""
    return bought.KINDS[attack].images_in_words if attack in bought.KINDS else ""


def about(cell: Cell) -> str:
    """What the attack of a cell is, in a sentence or two."""
    if cell.attack in bought.KINDS:
        return bought.KINDS[cell.attack].about
    text = sys.modules[METHODS[cell.attack].make_round.__module__].__doc__ or cell.attack
    text = " ".join(text.split("\n\n")[0].split())
    return f"{text} Its clones learn by {cell.loss} here." if cell.loss else text


def about_defence(audit: AuditConfig, name: str) -> str:
    """What a defence does with the numbers of an audit; "" of none."""
    if not name:
        return ""
    config = dataclasses.replace(audit.recipes[0], victim=audit.victim)
    return DEFENCES[name].about(with_defence(config, DEFENCES[name]).victim)


def not_tested(config: AuditConfig) -> list[str]:
    """What the audit leaves out, in sentences."""
    method, left = tried_on_defences(config), []
    others = [name for name in METHODS if name not in (*config.attacks, "offline")]
    if others:
        left.append(f"Methods that were not run: {', '.join(others)}.")
    absent = [name for name in bought.KINDS if name not in config.attacks]
    if absent:
        left.append(f"Baselines and bounds that were not run: {', '.join(absent)}.")
    unused = [name for name in DEFENCES if name not in config.defences]
    if unused:
        left.append(f"Defences that were not tried: {', '.join(unused)}.")
    left += [
        f"{name} has no settings of its own for {answers} answers and ran with those for the "
        "other kind."
        for name in dict.fromkeys(recipe.method for recipe in config.recipes)
        for answers in config.answers
        if name in config.attacks and _can_be(config, Cell(name, answers))
        if _recipe(config, Cell(name, answers)).labels != answers
    ]
    beside = [name for name in config.attacks if name != method]
    if config.defences and method:
        left.append(
            f"Defences were tried against {method} alone"
            + (f", and not against {', '.join(beside)}." if beside else ".")
        )
        left.append("Defences were tried one at a time, each with one setting of its numbers.")
        left.append(
            "Attackers learnt from the answers as they came: one who distrusts probabilities can "
            "take the likeliest class alone, which is what hard answers behind a defence show."
        )
    left += [
        f"{answers.capitalize()} answers were not tried."
        for answers in ("soft", "hard")
        if answers not in config.answers
    ]
    if not config.dataset:
        left.append(
            "There is no labelled test data: fidelity on random shapes was measured, and no "
            "accuracy, no transfer of adversarial examples and no price of defences."
        )
    elif not config.transfer.images:
        left.append("Transfer of adversarial examples was not measured.")
    if config.detector_queries:
        left.append(
            f"Detectors saw the first {config.detector_queries:,} queries, at most, of one seed "
            "of each cell."
        )
    else:
        left.append("No detector was run.")
    losses = dict.fromkeys(cell.loss for cell in cells_of(config) if cell.loss)
    but = f" other than by learning with {' or '.join(losses)}" if losses else ""
    left.append(f"Attackers who adapt to a defence{but} or hide from a detector were not tried.")
    left.append(f"Budgets other than {config.query_budget:,} queries were not tried.")
    return left
