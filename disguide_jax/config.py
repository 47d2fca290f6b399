"""What a run can be told: typed, checked before anything is computed.

The files in `configs/` return a `Config`, those of victims a `VictimTrainingConfig`;
`--config.key=value` overrides single keys and `--help` lists them. Where the paper and the
authors' code differ the defaults follow the code, which made the numbers.
"""

import copy
import dataclasses
from typing import Any, final

from disguide_jax.errors import UserError
from disguide_jax.settings import REQUIRED, get_value, setting, settings

EMBEDDED = "embedded:"  # weights that lie in disguide_jax/assets
RANDOM_WEIGHTS = "random"
MAX_SEED = 2**32 - 1


def _is_file_name(name: str) -> bool:
    return bool(name) and "/" not in name


def _are_growing_fractions(fractions: tuple[float, ...]) -> bool:
    return list(fractions) == sorted(set(fractions)) and all(0 < f < 1 for f in fractions)


@dataclasses.dataclass
class VictimConfig:
    """The model that is copied, seen only through its answers."""

    weights: str = setting(
        "",
        'a .safetensors, .pt or .pth file, "embedded:NAME", or "random"; what is in it counts, '
        "not where it lies",
        fits=bool,
        must_be="a file of weights, or 'random'",
    )
    model: str = setting("", "what the weights must be; empty takes whatever they are", auto=True)
    width: int = setting(0, "for random weights; 0 is the model's usual one", least=0, auto=True)
    input_space: str = setting(
        "pre-transform",
        "of what is sent: images; or images that the attacker, who knows how, has normalised",
        one_of=("pre-transform", "post-transform"),
    )
    mean: tuple[float, ...] = setting(
        (),
        "of pixels in [0, 1], per channel; () is what the file says, or the data set's own",
        auto=True,
    )
    std: tuple[float, ...] = setting(
        (),
        "of pixels in [0, 1], per channel; () is what the file says, or the data set's own",
        auto=True,
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
    count: int = setting(
        1, "independent networks, of which each makes its part of a batch", least=1
    )
    optimizer: str = setting("adam", "what makes the updates", one_of=("adam", "sgd"))
    learning_rate: float = setting(1e-4, "at the start, see schedule", above=0)
    momentum: float = setting(0.9, "of sgd", least=0, below=1)
    weight_decay: float = setting(0.0, "the paper says 5e-4; the authors' code has none", least=0)
    diversity_weight: float = setting(0.2, "lambda of Equation 1; 0.04 for CIFAR-100; also of dfms")
    gray_every: int = setting(
        8, "images 0, 8, 16, ... of a batch are turned gray; 0 turns none", least=0
    )


@dataclasses.dataclass
class DisguideConfig:
    """Counts of Algorithm 1 that the paper leaves at 1, and what goes beyond it."""

    generator_steps: int = setting(1, "g-iter, generator updates in a round", least=1)
    fresh_batches: int = setting(
        1, "d-iter, batches that are sent, stored and learnt from in a round", least=1
    )
    candidates: int = setting(
        1,
        "of so many times a batch the images are sent on which the clones disagree most, even "
        "over the classes that they name",
        least=1,
    )
    shapes: float = setting(
        0.0, "share of a fresh batch that are random shapes on black", least=0, below=1
    )


@dataclasses.dataclass
class ClonesConfig:
    """The networks that learn from the victim's answers."""

    model: str = setting("resnet18_8x", "resnet18_8x, resnet34_8x, lenet5 or lenet5_half")
    width: int = setting(0, "0 is the model's usual one", least=0, auto=True)
    steps: int = setting(
        5, "updates on paid batches in a round; disguide makes 1 whatever this is", least=1
    )
    soft_loss: str = setting(
        "l1",
        "for soft labels; the paper says cross_entropy",
        one_of=("l1", "cross_entropy", "kl"),
    )
    temperature: float = setting(
        1.0, "of cross_entropy and kl: above 1 the victim's less likely classes count more", above=0
    )
    top_classes: int = setting(
        0,
        "of l1: the victim's likeliest classes, which alone are learnt exactly; 0 takes all",
        least=0,
        fits=lambda num: num != 1,
        must_be="0, for all classes, or at least 2",
    )
    prob_floor: float = setting(
        1e-30, "raise it for a victim that rounds its probabilities", above=0, below=0.1
    )
    label_smoothing: float = setting(
        0.0, "of hard labels: the share that is spread evenly over classes", least=0, below=1
    )
    boundary_weight: float = setting(
        0.0, "of hard labels: how much more those count that the clones are unsure of", least=0
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
    candidates: int = setting(
        1,
        "of so many uniform batches one is drawn in proportion to the clones' loss on each image",
        least=1,
    )


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


@final
@dataclasses.dataclass
class Config:
    """One extraction: a victim, how it is asked, and what learns from its answers."""

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
    query_dtype: str = setting(
        "auto",
        "what images are rounded to before the victim sees them; auto is what the replay stores, "
        "float32 without one; uint8 is what an image API takes",
        one_of=("auto", "float32", "bfloat16", "uint8"),
        auto=True,
    )
    as_in_text: bool = setting(
        False,
        "disguide as in the paper's text where it differs from the authors' code: clones learn by "
        "cross-entropy, the generator's weight decay is 5e-4, rates fall at exact fractions",
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
    disguide: DisguideConfig = dataclasses.field(default_factory=DisguideConfig)
    zeroth_order: ZerothOrderConfig = dataclasses.field(default_factory=ZerothOrderConfig)
    dfms: DfmsConfig = dataclasses.field(default_factory=DfmsConfig)
    guard: str = setting(
        "warn",
        "what a run does from now on that is stuck, see disguide_jax/guard.py",
        one_of=("warn", "restart", "stop", "off"),
        resume=True,
    )
    precision: str = setting(
        "auto",
        "auto is bfloat16 on a GPU or TPU, float32 on the CPU, where a run begins",
        one_of=("auto", "float32", "bfloat16"),
        auto=True,
    )
    rounds_per_call: int = setting(
        0, "rounds in one call of the compiled step; 0 suits the backend", least=0, resume=True
    )
    log_every_queries: int = setting(25_600, "between lines of metrics", least=1, resume=True)
    evaluate_every_queries: int = setting(
        100_000, "between evaluations on the test images", least=1
    )
    checkpoint_every_queries: int = setting(500_000, "between checkpoints", least=1, resume=True)


@final
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
    width: int = setting(0, "0 is the model's usual one", least=0, auto=True)
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
        "auto is bfloat16 on a GPU or TPU, float32 on the CPU, where a run begins",
        one_of=("auto", "float32", "bfloat16"),
        auto=True,
    )
    evaluate_every_epochs: int = setting(
        1, "between evaluations on the test images", least=1, reports=True
    )
    checkpoint_every_epochs: int = setting(10, "between checkpoints", least=1, resume=True)


def validate(config: Config | VictimTrainingConfig) -> None:
    """Checks every value that does not need a file or a device.

    Raises:
      UserError: names the key, its value, and what would be right.
    """

    def check(key: str, right: bool, what: str) -> None:
        if not right:
            raise UserError(f"config.{key} is {get_value(config, key)!r}; it must be {what}")

    for key, known in settings(type(config)).items():
        check(key, known.allows(get_value(config, key)), known.right or "a finite number")
    if isinstance(config, Config):
        check(
            "victim.model",
            config.victim.model != "" or config.victim.weights != RANDOM_WEIGHTS,
            "a model when the weights are random",
        )
        check(
            "generator.count",
            config.batch_size % config.generator.count == 0
            and config.batch_size >= 2 * config.generator.count,
            "such that each makes as many images of a batch, 2 or more (config.batch_size is "
            f"{config.batch_size})",
        )
        check(
            "replay.size",
            config.replay.size >= config.batch_size,
            f"at least a batch (config.batch_size is {config.batch_size})",
        )


def spelled_out(config: Config) -> Config:
    """A copy in which `as_in_text` has become the settings that it stands for."""
    config = copy.deepcopy(config)
    if config.as_in_text:
        config.clones.soft_loss, config.generator.weight_decay = "cross_entropy", 5e-4
        config.schedule.block_rounds = 1
    return config


def to_dict(config: Config | VictimTrainingConfig) -> dict[str, Any]:
    """The configuration as plain nested dicts, lists and scalars, for JSON."""
    return dataclasses.asdict(config)
