"""What a run can be told: typed, checked before anything is computed.

The files in `configs/` return a `Config`; `--config.key=value` overrides single keys. Where
the paper and the authors' code differ the defaults follow the code, which made the numbers.
"""

import dataclasses
import math
from typing import Any

from disguide_jax.errors import UserError

LABELS = ("soft", "hard")
SOFT_LOSSES = ("l1", "cross_entropy", "kl")
INPUT_SPACES = ("pre-transform", "post-transform")
GUARDS = ("warn", "restart", "stop")
PRECISIONS = ("auto", "float32", "bfloat16")
REPLAY_DTYPES = ("float32", "bfloat16", "uint8")
OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("steps", "cosine")
EMBEDDED = "embedded:"  # weights that lie in disguide_jax/assets
RANDOM_WEIGHTS = "random"


@dataclasses.dataclass
class VictimConfig:
    """The model that is copied, seen only through its answers."""

    weights: str = ""  # a .safetensors, .pt or .pth file, "embedded:NAME", or "random"
    model: str = ""  # what the weights must be; "" takes whatever they are
    width: int = 0  # for random weights; 0 is the model's usual one
    input_space: str = "pre-transform"  # "post-transform": the attacker knows the transform
    mean: tuple[float, ...] = ()  # of pixels in [0, 1], per channel; () is the data set's own
    std: tuple[float, ...] = ()
    made_by: str = ""  # the command that makes the weights, for the message when absent


@dataclasses.dataclass
class GeneratorConfig:
    """The network that makes the queries, and its training."""

    model: str = "dfme"  # the three-convolution network of DFME and DisGUIDE; or "dcgan"
    width: int = 64
    latent_dim: int = 256
    optimizer: str = "adam"  # of OPTIMIZERS
    learning_rate: float = 1e-4
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.0  # the paper says 5e-4; the authors' code has none
    diversity_weight: float = 0.2  # lambda of Equation 1; 0.04 for CIFAR-100. Also of dfms
    gray_every: int = 8  # images 0, 8, 16, ... of a batch are turned gray; 0 turns none


@dataclasses.dataclass
class ClonesConfig:
    """The networks that learn from the victim's answers."""

    model: str = "resnet18_8x"
    width: int = 0  # 0 is the model's usual one
    steps: int = 5  # updates on paid batches in a round; disguide makes 1 whatever this is
    soft_loss: str = "l1"  # of SOFT_LOSSES; the paper says cross_entropy. Hard labels need none
    prob_floor: float = 1e-30  # raise it for a victim that rounds its probabilities
    learning_rate: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 5e-4
    average_decay: float = 0.0  # above 0 the result is the exponential average of all updates


@dataclasses.dataclass
class ReplayConfig:
    """Experience replay (Section 3.2)."""

    size: int = 1_000_000  # s
    batches: int = 3  # b, clone updates on replayed batches in each round
    dtype: str = "float32"  # "uint8" rounds images to 8 bits before the victim sees them, too
    crop_padding: int = 0  # replayed images are shifted by up to so many pixels
    flip: bool = False  # and every second one is mirrored


@dataclasses.dataclass
class ScheduleConfig:
    """Both learning rates over the budget.

    "steps" multiplies them by `factor` at these fractions, "cosine" lets them fall to 0.
    """

    shape: str = "steps"  # of SCHEDULES
    fractions: tuple[float, ...] = (0.4, 0.8)
    factor: float = 0.3
    block_rounds: int = 1  # boundaries are rounded down to a multiple; 150 in the authors' code


@dataclasses.dataclass
class ZerothOrderConfig:
    """How dfme and maze estimate the generator's gradient from answers."""

    directions: int = 1  # m, random directions for each image; every one is a query
    epsilon: float = 1e-3  # length of a step along them, before the tanh


@dataclasses.dataclass
class DfmsConfig:
    """The stages of dfms; its last one follows the keys that all methods have."""

    proxy_images: int = 50_000
    gan_epochs: int = 200
    validation_images: int = 20_000  # queries, twice
    offline_images: int = 25_000  # proxy images, and as many generated ones: queries, twice
    offline_epochs: int = 200
    offline_learning_rate: float = 0.1
    diversity_epochs: int = 100
    diversity_weight: float = 10.0
    choose_every_rounds: int = 782  # of the last stage: when the averages are compared
    adam_b1: float = 0.5  # of generator and discriminator
    flip: bool = True  # mirror half of the images


@dataclasses.dataclass
class Config:
    """One extraction."""

    name: str  # of the configuration; the default workdir is runs/<name>
    dataset: str  # what the clones are tested on, never trained on
    labels: str  # "soft": the victim answers with probabilities; "hard": with labels
    query_budget: int  # images that the victim may be sent
    method: str = "disguide"
    seed: int = 0
    batch_size: int = 256
    num_clones: int = 2
    data_dir: str = ""  # where <dataset>.npz or the prepared TFDS data set lies
    victim: VictimConfig = dataclasses.field(default_factory=VictimConfig)
    generator: GeneratorConfig = dataclasses.field(default_factory=GeneratorConfig)
    clones: ClonesConfig = dataclasses.field(default_factory=ClonesConfig)
    replay: ReplayConfig = dataclasses.field(default_factory=ReplayConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    zeroth_order: ZerothOrderConfig = dataclasses.field(default_factory=ZerothOrderConfig)
    dfms: DfmsConfig = dataclasses.field(default_factory=DfmsConfig)
    guard: str = "warn"  # of GUARDS: what a run does that is stuck, see disguide_jax/guard.py
    precision: str = "auto"  # "auto": bfloat16 on a GPU or TPU, float32 on the CPU
    rounds_per_call: int = 0  # rounds in one call of the compiled step; 0 suits the backend
    log_every_queries: int = 25_600
    evaluate_every_queries: int = 100_000
    checkpoint_every_queries: int = 500_000


def validate(config: Config) -> None:
    """Checks every value that does not need a file or a device.

    Raises:
      UserError: names the key, its value, and what would be right.
    """

    def check(key: str, right: Any, what: str) -> None:
        if not right:
            raise UserError(f"config.{key} is {_value(config, key)!r}; it must be {what}")

    def one_of(key: str, allowed: tuple[str, ...]) -> None:
        check(key, _value(config, key) in allowed, f"one of {', '.join(map(repr, allowed))}")

    def at_least(key: str, least: float) -> None:
        value = _value(config, key)
        check(key, math.isfinite(value) and value >= least, f"at least {least:,}")

    def above_zero(key: str) -> None:
        value = _value(config, key)
        check(key, math.isfinite(value) and value > 0, "above 0")

    one_of("labels", LABELS)
    one_of("precision", PRECISIONS)
    one_of("guard", GUARDS)
    one_of("replay.dtype", REPLAY_DTYPES)
    one_of("clones.soft_loss", SOFT_LOSSES)
    one_of("generator.optimizer", OPTIMIZERS)
    one_of("schedule.shape", SCHEDULES)
    one_of("victim.input_space", INPUT_SPACES)
    check("name", config.name and "/" not in config.name, "a plain file name")
    check("victim.weights", config.victim.weights, "a file of weights, or 'random'")
    check(
        "victim.model",
        config.victim.model or config.victim.weights != RANDOM_WEIGHTS,
        "a model when the weights are random",
    )
    check("query_budget", 1 <= config.query_budget < 2**31, "from 1 to 2,147,483,647")
    for key in ("batch_size", "num_clones", "replay.size", "schedule.block_rounds"):
        at_least(key, 1)
    for key in ("generator.width", "generator.latent_dim"):
        at_least(key, 1)
    for key in ("clones.steps", "zeroth_order.directions", "dfms.choose_every_rounds"):
        at_least(key, 1)
    for key in ("gan_epochs", "offline_epochs", "diversity_epochs", "diversity_weight"):
        at_least(f"dfms.{key}", 0)
    check("dfms.adam_b1", 0 <= config.dfms.adam_b1 < 1, "from 0 to below 1")
    for key in ("log", "evaluate", "checkpoint"):
        at_least(f"{key}_every_queries", 1)
    for key in ("victim.width", "clones.width", "rounds_per_call", "seed"):
        at_least(key, 0)
    for key in ("replay.batches", "replay.crop_padding", "generator.gray_every"):
        at_least(key, 0)
    for key in ("clones.weight_decay", "generator.weight_decay"):
        at_least(key, 0)
    check("seed", config.seed < 2**32, "below 4,294,967,296")
    check("batch_size", config.batch_size >= 2, "at least 2, for batch statistics")
    for key in ("clones.momentum", "generator.momentum"):
        check(key, 0 <= _value(config, key) < 1, "from 0 to below 1")
    check("clones.average_decay", 0 <= config.clones.average_decay < 1, "from 0 to below 1")
    check("clones.prob_floor", 0 < config.clones.prob_floor < 0.1, "above 0 and below 0.1")
    check(
        "generator.diversity_weight",
        math.isfinite(config.generator.diversity_weight),
        "a finite number",
    )
    for key in ("clones.learning_rate", "generator.learning_rate", "schedule.factor"):
        above_zero(key)
    for key in ("zeroth_order.epsilon", "dfms.offline_learning_rate"):
        above_zero(key)
    fractions = config.schedule.fractions
    check(
        "schedule.fractions",
        list(fractions) == sorted(set(fractions)) and all(0 < f < 1 for f in fractions),
        "growing fractions between 0 and 1",
    )
    check(
        "replay.size",
        config.replay.size >= config.batch_size,
        f"at least a batch (config.batch_size is {config.batch_size})",
    )
    check("victim.std", all(s > 0 for s in config.victim.std), "above 0 in every channel")


def smoke(config: Config) -> Config:
    """The same run in seconds: narrow networks, a random victim, noise to test on, few rounds.

    Everything else - method, labels, losses, number of clones - stays as it is.
    """
    config.name += "-smoke"
    config.batch_size = 8
    config.clones.steps, config.zeroth_order.directions = 2, 1
    batches = {"dual_students": 2, "dfme": 4, "maze": 3}.get(config.method, 1)  # sent in a round
    in_round = batches * config.batch_size
    config.query_budget = 5 * in_round + 3  # the last 3 are never sent
    config.log_every_queries = in_round
    config.evaluate_every_queries = 2 * in_round
    config.checkpoint_every_queries = 2 * in_round
    if config.method == "dfms":  # two rounds of validation, two of 16 labels, twice; then five
        config.dfms.proxy_images = config.dfms.validation_images = 2 * config.batch_size + 1
        config.dfms.offline_images = 2 * config.batch_size + 1
        config.dfms.gan_epochs = config.dfms.offline_epochs = config.dfms.diversity_epochs = 1
        config.dfms.choose_every_rounds = 2
        config.query_budget += 12 * config.batch_size
    config.schedule.block_rounds = 1
    config.replay.size = 3 * config.batch_size + 1  # wraps around
    config.replay.batches = 1  # compiles in half the time of 3
    config.generator.width, config.generator.latent_dim = 4, 16
    config.victim.weights = RANDOM_WEIGHTS
    if config.dataset.startswith("cifar"):  # LeNets are narrow as they are
        config.dataset = config.dataset.replace("cifar", "noise")
        if config.method == "disguide":
            config.victim.width = config.clones.width = 4
        else:  # some compile many kinds of rounds
            config.victim.model, config.clones.model = "lenet5", "lenet5_half"
    return config


def select(config: Config, variant: str) -> Config:
    """What `configs/NAME.py:variant` means: "" is the run itself, "smoke" its tiny twin.

    Raises:
      UserError: there is no such variant.
    """
    if variant == "":
        return config
    if variant == "smoke":
        return smoke(config)
    raise UserError(f"{config.name} has no variant {variant!r}; the only one is 'smoke'")


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain nested dicts, lists and scalars, for JSON."""
    return dataclasses.asdict(config)


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config
