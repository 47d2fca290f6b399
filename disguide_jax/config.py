"""What a run can be told: typed, checked before anything is computed.

The files in `configs/` return a `Config`, those of victims a `VictimTrainingConfig`;
`--config.key=value` overrides single keys and `--help` lists them. Where the paper and the
authors' code differ the defaults follow the code, which made the numbers.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from disguide_jax.errors import UserError

EMBEDDED = "embedded:"  # weights that lie in disguide_jax/assets
RANDOM_WEIGHTS = "random"
REQUIRED = dataclasses.MISSING  # the default of a key that every configuration must set
MAX_SEED = 2**32 - 1
RENAMED: dict[str, str] = {}  # old key: new key, for the message to who still uses the old one


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known of one key: its default, its meaning, and which values are right."""

    default: Any
    help: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    one_of: tuple[str, ...] = ()
    fits: Callable[[Any], bool] | None = None  # for what the bounds cannot say, see must_be
    must_be: str = ""  # the right values in words, where the bounds do not say it best
    resume: bool = False  # may differ from what a workdir was started with
    reports: bool = False  # changes what is said of a result, never the result

    def allows(self, value: Any) -> bool:
        """Whether the value is right; a number that is not finite never is."""
        return (
            (not isinstance(value, float) or math.isfinite(value))
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (not self.one_of or value in self.one_of)
            and (self.fits is None or self.fits(value))
        )

    @property
    def right(self) -> str:
        """The right values in words, after "it must be"; empty where every finite one is."""
        if self.must_be:
            return self.must_be
        if self.one_of:
            return f"one of {', '.join(map(repr, self.one_of))}"
        if self.least is not None and self.most is not None:
            return f"from {self.least:,} to {self.most:,}"
        if self.least is not None and self.below is not None:
            return f"from {self.least:,} to below {self.below:,}"
        limits = {"at least": self.least, "above": self.above, "below": self.below}
        return " and ".join(f"{word} {x:,}" for word, x in limits.items() if x is not None)


def setting(default: Any, help: str, **limits: Any) -> Any:
    """A field of a configuration; `limits` are those of `Setting`."""
    about = Setting(default, help, **limits)
    return dataclasses.field(default=default, metadata={"setting": about})


def _is_file_name(name: str) -> bool:
    return bool(name) and "/" not in name


def _are_growing_fractions(fractions: tuple[float, ...]) -> bool:
    return list(fractions) == sorted(set(fractions)) and all(0 < f < 1 for f in fractions)


@dataclasses.dataclass
class VictimConfig:
    """The model that is copied, seen only through its answers."""

    weights: str = setting(
        "",
        'a .safetensors, .pt or .pth file, "embedded:NAME", or "random"',
        fits=bool,
        must_be="a file of weights, or 'random'",
    )
    model: str = setting("", "what the weights must be; empty takes whatever they are")
    width: int = setting(0, "for random weights; 0 is the model's usual one", least=0)
    input_space: str = setting(
        "pre-transform",
        "of what is sent: images; or images that the attacker, who knows how, has normalised",
        one_of=("pre-transform", "post-transform"),
    )
    mean: tuple[float, ...] = setting(
        (), "of pixels in [0, 1], per channel; () is the data set's own"
    )
    std: tuple[float, ...] = setting(
        (),
        "of pixels in [0, 1], per channel; () is the data set's own",
        fits=lambda std: all(s > 0 for s in std),
        must_be="above 0 in every channel",
    )
    made_by: str = setting(
        "", "the command that makes the weights, for the message when they are absent", resume=True
    )


@dataclasses.dataclass
class GeneratorConfig:
    """The network that makes the queries, and its training."""

    model: str = setting(
        "dfme", 'the three-convolution network of DFME and DisGUIDE, "dfme", or "dcgan"'
    )
    width: int = setting(64, "feature maps of the last layer but one", least=1)
    latent_dim: int = setting(256, "numbers that an image is made from", least=1)
    optimizer: str = setting("adam", "what makes the updates", one_of=("adam", "sgd"))
    learning_rate: float = setting(1e-4, "at the start, see schedule", above=0)
    momentum: float = setting(0.9, "of sgd", least=0, below=1)
    weight_decay: float = setting(0.0, "the paper says 5e-4; the authors' code has none", least=0)
    diversity_weight: float = setting(0.2, "lambda of Equation 1; 0.04 for CIFAR-100; also of dfms")
    gray_every: int = setting(
        8, "images 0, 8, 16, ... of a batch are turned gray; 0 turns none", least=0
    )


@dataclasses.dataclass
class ClonesConfig:
    """The networks that learn from the victim's answers."""

    model: str = setting("resnet18_8x", "resnet18_8x, resnet34_8x, lenet5 or lenet5_half")
    width: int = setting(0, "0 is the model's usual one", least=0)
    steps: int = setting(
        5, "updates on paid batches in a round; disguide makes 1 whatever this is", least=1
    )
    soft_loss: str = setting(
        "l1",
        "for soft labels; the paper says cross_entropy",
        one_of=("l1", "cross_entropy", "kl"),
    )
    prob_floor: float = setting(
        1e-30, "raise it for a victim that rounds its probabilities", above=0, below=0.1
    )
    learning_rate: float = setting(0.03, "of SGD at the start, see schedule", above=0)
    momentum: float = setting(0.9, "of SGD", least=0, below=1)
    weight_decay: float = setting(5e-4, "of SGD", least=0)
    average_decay: float = setting(
        0.0, "above 0 the result is the exponential average of all updates", least=0, below=1
    )


@dataclasses.dataclass
class ReplayConfig:
    """Experience replay (Section 3.2)."""

    size: int = setting(1_000_000, "s, images that are kept, a batch or more", least=1)
    batches: int = setting(3, "b, clone updates on replayed batches in each round", least=0)
    dtype: str = setting(
        "float32",
        "of kept images; uint8 rounds images to 8 bits before the victim sees them, too",
        one_of=("float32", "bfloat16", "uint8"),
    )
    crop_padding: int = setting(0, "replayed images are shifted by up to so many pixels", least=0)
    flip: bool = setting(False, "mirror every second replayed image")


@dataclasses.dataclass
class ScheduleConfig:
    """Both learning rates over the budget."""

    shape: str = setting(
        "steps",
        "steps multiplies the rates by the factor at the fractions, cosine lets them fall to 0",
        one_of=("steps", "cosine"),
    )
    fractions: tuple[float, ...] = setting(
        (0.4, 0.8),
        "of the budget, for steps",
        fits=_are_growing_fractions,
        must_be="growing fractions between 0 and 1",
    )
    factor: float = setting(0.3, "for steps", above=0)
    block_rounds: int = setting(
        1, "boundaries are rounded down to a multiple; 150 in the authors' code", least=1
    )


@dataclasses.dataclass
class ZerothOrderConfig:
    """How dfme and maze estimate the generator's gradient from answers."""

    directions: int = setting(
        1, "m, random directions for each image; every one is a query", least=1
    )
    epsilon: float = setting(1e-3, "length of a step along them, before the tanh", above=0)


@dataclasses.dataclass
class DfmsConfig:
    """The stages of dfms; its last one follows the keys that all methods have."""

    proxy_images: int = setting(50_000, "synthetic images to start from, a batch or more")
    gan_epochs: int = setting(200, "of the GAN's training on proxy images", least=0)
    validation_images: int = setting(20_000, "queries, twice; a batch or more")
    offline_images: int = setting(
        25_000, "proxy images, and as many generated ones: queries, twice; a batch or more"
    )
    offline_epochs: int = setting(200, "of the clones' training on them", least=0)
    offline_learning_rate: float = setting(0.1, "at the start of that training", above=0)
    diversity_epochs: int = setting(100, "of the GAN's training with the diversity loss", least=0)
    diversity_weight: float = setting(10.0, "of the diversity loss there", least=0)
    choose_every_rounds: int = setting(
        782, "of the last stage: when the averages are compared", least=1
    )
    adam_b1: float = setting(0.5, "of generator and discriminator", least=0, below=1)
    flip: bool = setting(True, "mirror half of the images")


@dataclasses.dataclass
class Config:
    """One extraction."""

    name: str = setting(
        REQUIRED,
        "of the configuration; the default workdir is runs/NAME",
        fits=_is_file_name,
        must_be="a plain file name",
    )
    dataset: str = setting(REQUIRED, "what the clones are tested on, never trained on")
    labels: str = setting(
        REQUIRED,
        "what the victim answers with: probabilities or labels",
        one_of=("soft", "hard"),
    )
    query_budget: int = setting(
        REQUIRED, "images that the victim may be sent", least=1, most=2**31 - 1
    )
    method: str = setting("disguide", "disguide, dual_students, dfme, maze or dfms")
    seed: int = setting(0, "of all random numbers", least=0, most=MAX_SEED)
    batch_size: int = setting(
        256, "images that are sent at once", least=2, must_be="at least 2, for batch statistics"
    )
    num_clones: int = setting(
        2, "networks that are trained; disguide needs 2, dual_students has 2", least=1
    )
    data_dir: str = setting("", "where DATASET.npz or the prepared TFDS data set lies", resume=True)
    victim: VictimConfig = dataclasses.field(default_factory=VictimConfig)
    generator: GeneratorConfig = dataclasses.field(default_factory=GeneratorConfig)
    clones: ClonesConfig = dataclasses.field(default_factory=ClonesConfig)
    replay: ReplayConfig = dataclasses.field(default_factory=ReplayConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    zeroth_order: ZerothOrderConfig = dataclasses.field(default_factory=ZerothOrderConfig)
    dfms: DfmsConfig = dataclasses.field(default_factory=DfmsConfig)
    guard: str = setting(
        "warn",
        "what a run does from now on that is stuck, see disguide_jax/guard.py",
        one_of=("warn", "restart", "stop"),
        resume=True,
    )
    precision: str = setting(
        "auto",
        "auto is bfloat16 on a GPU or TPU, float32 on the CPU",
        one_of=("auto", "float32", "bfloat16"),
    )
    rounds_per_call: int = setting(
        0, "rounds in one call of the compiled step; 0 suits the backend", least=0, resume=True
    )
    log_every_queries: int = setting(25_600, "between lines of metrics", least=1, resume=True)
    evaluate_every_queries: int = setting(
        100_000, "between evaluations on the test images", least=1
    )
    checkpoint_every_queries: int = setting(500_000, "between checkpoints", least=1, resume=True)


@dataclasses.dataclass
class VictimTrainingConfig:
    """The training of one victim."""

    name: str = setting(
        REQUIRED,
        "of the configuration; the default workdir is runs/NAME",
        fits=_is_file_name,
        must_be="a plain file name",
        reports=True,
    )
    dataset: str = setting(REQUIRED, "what the victim is trained and tested on")
    model: str = setting(REQUIRED, "resnet18_8x, resnet34_8x, lenet5 or lenet5_half")
    width: int = setting(0, "0 is the model's usual one", least=0)
    seed: int = setting(0, "of all random numbers", least=0, most=MAX_SEED)
    data_dir: str = setting("", "where DATASET.npz or the prepared TFDS data set lies", resume=True)
    output: str = setting(
        "",
        "where the weights go; empty is victims/DATASET-MODEL.safetensors",
        fits=lambda output: output == "" or output.endswith(".safetensors"),
        must_be="a .safetensors file",
        resume=True,
    )
    train_images: int = setting(0, "take only the first so many; 0 takes all", least=0)
    test_images: int = setting(0, "take only the first so many; 0 takes all", least=0, reports=True)
    epochs: int = setting(240, "of the training", least=1)
    batch_size: int = setting(
        256,
        "images that fill no batch wait for another epoch's order",
        least=2,
        must_be="at least 2, for batch statistics",
    )
    learning_rate: float = setting(0.1, "of SGD at the start", above=0)
    momentum: float = setting(0.9, "of SGD", least=0, below=1)
    weight_decay: float = setting(5e-4, "of SGD", least=0)
    decay_at: tuple[float, ...] = setting(
        (0.25, 0.5, 0.75),
        "fractions of all updates at which the learning rate falls",
        fits=_are_growing_fractions,
        must_be="growing fractions between 0 and 1",
    )
    decay_factor: float = setting(0.2, "what it is multiplied by", above=0)
    crop_padding: int = setting(
        4, "shifts of up to so many pixels; what comes in is black", least=0
    )
    flip: bool = setting(True, "mirror every second image")
    precision: str = setting(
        "auto",
        "auto is bfloat16 on a GPU or TPU, float32 on the CPU",
        one_of=("auto", "float32", "bfloat16"),
    )
    evaluate_every_epochs: int = setting(
        1, "between evaluations on the test images", least=1, reports=True
    )
    checkpoint_every_epochs: int = setting(10, "between checkpoints", least=1, resume=True)


def settings(kind: type, prefix: str = "") -> dict[str, Setting]:
    """All keys of a kind of configuration, dotted, and what is known of them."""
    found: dict[str, Setting] = {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default_factory):
            found |= settings(field.default_factory, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = field.metadata["setting"]
    return found


def validate(config: Config | VictimTrainingConfig) -> None:
    """Checks every value that does not need a file or a device.

    Raises:
      UserError: names the key, its value, and what would be right.
    """

    def check(key: str, right: bool, what: str) -> None:
        if not right:
            raise UserError(f"config.{key} is {_value(config, key)!r}; it must be {what}")

    for key, known in settings(type(config)).items():
        check(key, known.allows(_value(config, key)), known.right or "a finite number")
    if isinstance(config, Config):
        check(
            "victim.model",
            config.victim.model != "" or config.victim.weights != RANDOM_WEIGHTS,
            "a model when the weights are random",
        )
        check(
            "replay.size",
            config.replay.size >= config.batch_size,
            f"at least a batch (config.batch_size is {config.batch_size})",
        )


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


def smoke_training(config: VictimTrainingConfig) -> VictimTrainingConfig:
    """The same training in seconds: a narrow network on few images, noise in place of CIFAR."""
    config.name += "-smoke"
    config.output = f"victims/{config.name}.safetensors"
    if config.dataset.startswith("cifar"):  # LeNets are narrow as they are
        config.dataset = config.dataset.replace("cifar", "noise")
        config.width = 4
    config.train_images, config.test_images, config.batch_size = 72, 64, 16
    config.epochs, config.evaluate_every_epochs, config.checkpoint_every_epochs = 2, 1, 1
    return config


def select[Kind: (Config, VictimTrainingConfig)](config: Kind, variant: str) -> Kind:
    """What `configs/NAME.py:variant` means: "" is the run itself, "smoke" its tiny twin.

    Raises:
      UserError: there is no such variant.
    """
    if variant == "":
        return config
    if variant == "smoke":
        return smoke(config) if isinstance(config, Config) else smoke_training(config)
    raise UserError(f"{config.name} has no variant {variant!r}; the only one is 'smoke'")


def to_dict(config: Config | VictimTrainingConfig) -> dict[str, Any]:
    """The configuration as plain nested dicts, lists and scalars, for JSON."""
    return dataclasses.asdict(config)


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config
