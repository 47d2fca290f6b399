"""What an audit can be told: whose model it is, who attacks it and how, and what is measured."""

import dataclasses
from typing import final

from disguide_jax.config import DATA_DIR, MAX_QUERIES, MAX_SEED, Config, are_seeds, is_file_name
from disguide_jax.options import SOFT_LOSSES, VictimConfig
from disguide_jax.settings import REQUIRED, setting

ANSWERS = ("soft", "hard")


def _are_answers(answers: tuple[str, ...]) -> bool:
    return 0 < len(answers) == len(set(answers)) and set(answers) <= set(ANSWERS)


def _are_different(names: tuple[str, ...]) -> bool:
    return len(set(names)) == len(names)


@dataclasses.dataclass
class TransferConfig:
    """Adversarial examples that are made on the clones and tried on the victim."""

    epsilon: float = setting(
        0.1, "the largest change of a pixel, of pixels in [0, 1]", above=0, most=1, resume=True
    )
    steps: int = setting(10, "of PGD", least=1, resume=True)
    images: int = setting(
        200,
        "test images that the victim gets right, at most, that they are made of; an endpoint is "
        "asked about two for each, beside the budget; 0: none are made",
        least=0,
        resume=True,
    )


@final
@dataclasses.dataclass
class AuditConfig:
    """One audit: a victim, and every attack, kind of answers and defence that is tried on it."""

    name: str = setting(
        REQUIRED,
        "of the audit; the default workdir is runs/NAME",
        fits=is_file_name,
        must_be="a plain file name",
    )
    dataset: str = setting(
        REQUIRED,
        "whose test images clones are tested on, and whose training images knockoff takes; may be "
        "empty for an endpoint, as for a single run: then there is fidelity, and no accuracy",
    )
    query_budget: int = setting(
        REQUIRED, "images that the victim may be sent in each run", least=1, most=MAX_QUERIES
    )
    recipes: tuple[Config, ...] = setting(
        (),
        "the settings of each method for each kind of answers, set in the file alone; victim, data "
        "set, budget and seeds are those of the audit",
        fits=bool,
        must_be="one configuration of a single run or more",
    )
    attacks: tuple[str, ...] = setting(
        ("disguide", "random", "shapes", "knockoff"),
        "methods among the recipes, of which the first one is tried against defences; random and "
        "shapes, the baselines; knockoff, the upper bound",
        fits=_are_different,
        must_be="different names",
        resume=True,
    )
    answers: tuple[str, ...] = setting(
        ANSWERS,
        "of the victim that are tried",
        fits=_are_answers,
        must_be="('soft', 'hard') or one of them",
        resume=True,
    )
    defences: tuple[str, ...] = setting(
        (),
        "that are tried; the numbers of each are keys of victim, such as victim.noise_scale",
        fits=_are_different,
        must_be="different names",
        resume=True,
    )
    adaptive_losses: tuple[str, ...] = setting(
        ("cross_entropy",),
        "that the clones of the first method learn by, too, as an attacker may who distrusts "
        "probabilities, behind defences and without; (): those of the recipes alone",
        fits=lambda losses: _are_different(losses) and set(losses) <= set(SOFT_LOSSES),
        must_be=f"some of {SOFT_LOSSES}",
        resume=True,
    )
    seeds: tuple[int, ...] = setting(
        (0, 1, 2),
        "of the runs of each cell",
        fits=lambda seeds: bool(seeds) and are_seeds(seeds),
        must_be=f"different whole numbers from 0 to {MAX_SEED:,}, such as (0, 1, 2)",
        resume=True,
    )
    price_per_1000: float = setting(
        0.0, "what 1,000 queries cost, of any currency; 0: unknown", least=0, resume=True
    )
    queries_per_second: float = setting(
        0.0, "that the victim answers to one customer; 0: unknown", least=0, resume=True
    )
    detector_queries: int = setting(
        2_000,
        "of the first seed of a cell, that detectors are shown at most; 0: there are none",
        least=0,
        resume=True,
    )
    data_dir: str = setting("", DATA_DIR, resume=True)
    victim: VictimConfig = dataclasses.field(default_factory=VictimConfig)
    transfer: TransferConfig = dataclasses.field(default_factory=TransferConfig)
