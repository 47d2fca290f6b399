"""What a run can be told: typed, checked before anything is computed.

The files in `configs/` return a `Config`, those of victims a `VictimTrainingConfig`;
`--config.key=value` overrides single keys and `--help` lists them. Where the paper and the
authors' code differ the defaults follow the code, which made the numbers.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, final

from disguide_jax.errors import UserError
from disguide_jax.options import (
    MODELS,
    RANDOM_WEIGHTS,
    ClonesConfig,
    DfmsConfig,
    DisguideConfig,
    GeneratorConfig,
    OfflineConfig,
    ReplayConfig,
    ScheduleConfig,
    VictimConfig,
    ZerothOrderConfig,
    are_growing_fractions,
)
from disguide_jax.settings import REQUIRED, get_value, refuse_ignored, setting, settings

MAX_SEED = 2**32 - 1
OF_ONNX = ("victim.logits", "victim.layout", "victim.pixels")
OF_SERVICES = (
    *(f"victim.{key}" for key in ("image_format", "images_per_request", "concurrency")),
    *(f"victim.{key}" for key in ("requests_per_second", "timeout_seconds", "retries")),
    "victim.token_env",
)
OF_ANSWERS = ("victim.top_k", "victim.decimals")  # an endpoint's, or a defence's
OF_ENDPOINTS = (
    "fidelity_images",
    *(f"victim.{key}" for key in ("image_size", "channels", "num_classes")),
    *OF_ONNX,
    *OF_SERVICES,
    "victim.authorised_by",
)

DATA_DIR = (
    "where the data set lies: torchvision's folder, a folder of images by class, an .npz or TFDS's "
    "folder; ~ is the home, empty the current folder"
)


def are_seeds(seeds: tuple[int, ...]) -> bool:
    """Whether each is a seed, and none is there twice."""
    return all(0 <= seed <= MAX_SEED for seed in seeds) and len(set(seeds)) == len(seeds)


def _is_file_name(name: str) -> bool:
    return bool(name) and "/" not in name


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
    dataset: str = setting(
        REQUIRED,
        "what the clones are tested on, never trained on; may be empty for an endpoint, of which "
        "then victim.num_classes, victim.channels and victim.image_size tell",
    )
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
    fidelity_images: int = setting(
        0,
        "without a data set: images of the budget that are kept apart, to measure fidelity on; 0 "
        "is 2 %, at most 1,000",
        least=0,
        auto=True,
    )
    method: str = setting("disguide", "disguide, dual_students, dfme, maze, dfms or offline")
    seed: int = setting(0, "of all random numbers", least=0, most=MAX_SEED)
    seeds: tuple[int, ...] = setting(
        (),
        "of several runs, such as 0,1,2: each goes to WORKDIR/seedN, as a run of its own",
        fits=are_seeds,
        must_be=f"different whole numbers from 0 to {MAX_SEED:,}, such as (0, 1, 2)",
    )
    batch_size: int = setting(
        256, "images that are sent at once", least=2, must_be="at least 2, for batch statistics"
    )
    num_clones: int = setting(
        2, "networks that are trained; disguide needs 2, dual_students has 2", least=1
    )
    data_dir: str = setting("", DATA_DIR, resume=True)
    victim: VictimConfig = dataclasses.field(default_factory=VictimConfig)
    generator: GeneratorConfig = dataclasses.field(default_factory=GeneratorConfig)
    clones: ClonesConfig = dataclasses.field(default_factory=ClonesConfig)
    replay: ReplayConfig = dataclasses.field(default_factory=ReplayConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    disguide: DisguideConfig = dataclasses.field(default_factory=DisguideConfig)
    zeroth_order: ZerothOrderConfig = dataclasses.field(default_factory=ZerothOrderConfig)
    dfms: DfmsConfig = dataclasses.field(default_factory=DfmsConfig)
    offline: OfflineConfig = dataclasses.field(default_factory=OfflineConfig)
    guard: str = setting(
        "warn",
        "what a run does from now on that is stuck, see disguide_jax/run/guard.py",
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
    devices: int = setting(
        0,
        "of this machine that share the run, each with a part of every batch; 0: all",
        least=0,
        resume=True,
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
    model: str = setting(REQUIRED, MODELS)
    width: int = setting(0, "0 is the model's usual one", least=0, auto=True)
    seed: int = setting(0, "of all random numbers", least=0, most=MAX_SEED)
    data_dir: str = setting("", DATA_DIR, resume=True)
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
        fits=are_growing_fractions,
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
        value = get_value(config, key)
        check(key, known.allows(value), known.wanted(value))
    if isinstance(config, Config):
        check_victim(config, check)
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


def check_victim(config: Config, check: Callable[[str, bool, str], None]) -> None:
    """Checks what must hold between the victim's keys and others.

    Raises:
      UserError: names the key, its value, and what would be right.
    """
    victim = config.victim
    check(
        "victim.endpoint" if victim.endpoint else "victim.weights",
        bool(victim.weights) != bool(victim.endpoint),
        "empty where the other is set: the victim is either a file of weights "
        f"(config.victim.weights is {victim.weights!r}) or an endpoint "
        f"(config.victim.endpoint is {victim.endpoint!r})",
    )
    if not victim.endpoint:
        check("dataset", bool(config.dataset), "a data set, unless the victim is an endpoint")
        ignored = OF_ENDPOINTS + (() if victim.defence else OF_ANSWERS)
        refuse_ignored(config, ignored, "a victim whose weights are at hand")
        return
    if not victim.endpoint.startswith("onnx:"):
        refuse_ignored(config, OF_ONNX, "an endpoint that is no ONNX file")
    if not victim.endpoint.startswith(("http://", "https://")):
        refuse_ignored(config, OF_SERVICES, "an endpoint that is no service")
    check("query_dtype", config.query_dtype in ("auto", "uint8"), "uint8 for an endpoint")
    check(
        "victim.input_space",
        victim.input_space == "pre-transform",
        "'pre-transform' for an endpoint, which takes images",
    )
    check(
        "fidelity_images",
        config.fidelity_images == 0 or not config.dataset,
        "0 where there is a data set, whose images fidelity is measured on",
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
