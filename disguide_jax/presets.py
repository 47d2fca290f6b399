"""What configurations share, so that the files in `configs/` say only what they are about.

A preset takes any key of `Config`; groups are dicts, `generator={"width": 8}`, of which each key
replaces the preset's own.
"""

import copy
import dataclasses
from typing import Any

from disguide_jax import shipped
from disguide_jax.audit_config import AuditConfig
from disguide_jax.config import Config, VictimTrainingConfig
from disguide_jax.errors import UserError
from disguide_jax.options import RANDOM_WEIGHTS

RECIPES = {  # configs/NAME.py: the data set and the model of the victim that it trains
    "victim_c10_r34": ("cifar10", "resnet34_8x"),
    "victim_c10_r34_narrow": ("cifar10", "resnet34_8x"),
    "victim_c100_r34": ("cifar100", "resnet34_8x"),
    "victim_c100_r18": ("cifar100", "resnet18_8x"),
}


def cifar(name: str, *, recipe: str, **settings: Any) -> Config:
    """Copies the victim of one of the RECIPES, with networks of the paper's sizes."""
    return _combine(_victim_of(recipe) | {"name": name}, settings)


def paper(name: str, *, recipe: str, **settings: Any) -> Config:
    """`cifar` with the schedule of DisGUIDE's authors, whose rates change between blocks."""
    in_blocks = {"schedule": {"block_rounds": 150}}
    return _combine(_victim_of(recipe) | {"name": name} | in_blocks, settings)


def narrow(name: str, **settings: Any) -> Config:
    """Copies a narrow ResNet-34 that reads CIFAR-10, with networks for two CPU cores."""
    preset = _victim_of("victim_c10_r34_narrow")
    preset["victim"] |= {"weights": "victims/cifar10-resnet34_w16.safetensors", "width": 16}
    preset |= {
        "name": name,
        "batch_size": 64,
        "generator": {"width": 16},
        "clones": {"width": 8},
        "log_every_queries": 6_400,
        "evaluate_every_queries": 12_800,
        "checkpoint_every_queries": 25_600,
    }
    return _combine(preset, settings)


def digits(name: str, *, dataset: str = "digits", **settings: Any) -> Config:
    """Copies the embedded LeNet-5 of a data set of digits, with networks for two CPU cores."""
    preset = {
        "batch_size": 16,
        "generator": {"width": 8, "latent_dim": 64},
        "clones": {"model": "lenet5_half"},
        "log_every_queries": 1_200,
        "evaluate_every_queries": 2_400,
        "checkpoint_every_queries": 8_000,
    }
    return _combine(_embedded(dataset) | {"name": name} | preset, settings)


def endpoint(name: str, *, endpoint: str, made_by: str = "", **settings: Any) -> Config:
    """`digits` from the probabilities of an endpoint, as 8 bits."""
    victim = {"weights": "", "model": "", "endpoint": endpoint, "made_by": made_by}
    preset: dict[str, Any] = {
        "labels": "soft",
        "query_budget": 48_000,
        "victim": victim,
        "generator": {"learning_rate": 1e-3, "gray_every": 0},
        "clones": {"learning_rate": 0.03},
        "replay": {"size": 48_000, "dtype": "uint8"},
    }
    return digits(name, **preset | settings)


def fashion(name: str, **settings: Any) -> Config:
    """Copies the embedded LeNet-5 of Fashion-MNIST, with networks for two CPU cores."""
    preset = {
        "batch_size": 64,
        "generator": {"width": 16, "latent_dim": 128, "gray_every": 0},
        "clones": {"model": "lenet5"},
        "log_every_queries": 6_400,
        "evaluate_every_queries": 12_800,
        "checkpoint_every_queries": 50_000,
    }
    return _combine(_embedded("fashion_mnist") | {"name": name} | preset, settings)


def audit(name: str, *, recipes: tuple[str, ...], **settings: Any) -> AuditConfig:
    """Audits the victim of the first of some configs/RECIPE.py, by the methods of all of them."""
    configs = tuple(shipped.load(recipe) for recipe in recipes)
    first = configs[0]
    known: dict[str, Any] = {"victim": copy.deepcopy(first.victim), "dataset": first.dataset}
    return AuditConfig(name=name, recipes=configs, **known | settings)


def smoke(config: Config) -> Config:
    """The same run in seconds: narrow networks, a random victim, data at hand, few rounds.

    Everything else - method, labels, losses, number of clones - stays as it is. What a random
    victim does to clones is no news: the guard is off.
    """
    config.name += "-smoke"
    config.batch_size = 8
    config.guard = "off"
    batches = {"dual_students": 2, "dfme": 4, "maze": 3}.get(config.method, 1)  # sent in a round
    in_round = batches * config.batch_size
    config.query_budget = 5 * in_round + 3  # the last 3 are never sent
    config.log_every_queries = in_round
    config.evaluate_every_queries = 2 * in_round
    config.checkpoint_every_queries = 2 * in_round
    if config.method in ("dual_students", "dfme", "maze"):
        config.clones.steps = 2
    if config.method in ("dfme", "maze"):
        config.zeroth_order.directions = 1
    if config.method in ("disguide", "maze"):
        config.replay.size = 3 * config.batch_size + 1  # wraps around
        config.replay.batches = 1  # compiles in half the time of 3
    if config.method == "dfms":  # two rounds of validation, two of 16 labels, twice; then five
        config.dfms.proxy_images = config.dfms.validation_images = 2 * config.batch_size + 1
        config.dfms.offline_images = 2 * config.batch_size + 1
        config.dfms.gan_epochs = config.dfms.offline_epochs = config.dfms.diversity_epochs = 1
        config.dfms.choose_every_rounds = 2
        config.query_budget += 12 * config.batch_size
    config.schedule.block_rounds = 1
    config.generator.width, config.generator.latent_dim = 4, 16
    config.victim.weights = RANDOM_WEIGHTS
    if config.victim.endpoint:
        config.victim.endpoint, config.victim.model = "", "lenet5"
    on_cifar, config.dataset = config.dataset.startswith("cifar"), _at_hand(config.dataset)
    if on_cifar:  # LeNets are narrow as they are
        if config.method == "disguide":
            config.victim.width = config.clones.width = 4
        else:  # some compile many kinds of rounds
            config.victim.model, config.clones.model = "lenet5", "lenet5_half"
    return config


def smoke_audit(config: AuditConfig) -> AuditConfig:
    """The same audit in a minute: tiny runs against a random victim, and few of them."""
    recipes = tuple(smoke(recipe) for recipe in config.recipes)
    config = dataclasses.replace(
        config,
        name=f"{config.name}-smoke",
        recipes=recipes,
        dataset=recipes[0].dataset,
        query_budget=max(recipe.query_budget for recipe in recipes),
        seeds=config.seeds[:2],
        detector_queries=40,
    )
    for key in ("weights", "endpoint", "model"):
        setattr(config.victim, key, getattr(recipes[0].victim, key))
    config.transfer.images, config.transfer.steps = 8, 2
    return config


def smoke_training(config: VictimTrainingConfig) -> VictimTrainingConfig:
    """The same training in seconds: a narrow network on few images that are at hand."""
    config.name += "-smoke"
    config.output = f"victims/{config.name}.safetensors"
    config.dataset = _at_hand(config.dataset)
    if config.model.startswith("resnet"):  # LeNets are narrow as they are
        config.width = 4
    config.train_images, config.test_images, config.batch_size = 72, 64, 16
    config.epochs, config.evaluate_every_epochs, config.checkpoint_every_epochs = 2, 1, 1
    return config


def select[Kind: (Config, VictimTrainingConfig, AuditConfig)](config: Kind, variant: str) -> Kind:
    """What `configs/NAME.py:variant` means: "" is the run itself, "smoke" its tiny twin.

    Raises:
      UserError: there is no such variant.
    """
    if variant == "":
        return config
    if variant == "smoke":
        if isinstance(config, AuditConfig):
            return smoke_audit(config)
        return smoke(config) if isinstance(config, Config) else smoke_training(config)
    raise UserError(f"{config.name} has no variant {variant!r}; the only one is 'smoke'")


def _victim_of(recipe: str) -> dict[str, Any]:
    dataset, model = RECIPES[recipe]
    return {
        "dataset": dataset,
        "victim": {
            "weights": f"victims/{dataset}-{model}.safetensors",
            "model": model,
            "made_by": f"python scripts/train_victim.py --config configs/{recipe}.py",
        },
    }


def _at_hand(dataset: str) -> str:
    """What stands in for a data set that has to be fetched: noise for CIFAR, digits for clothes."""
    return {"fashion_mnist": "digits"}.get(dataset, dataset.replace("cifar", "noise"))


def _embedded(dataset: str) -> dict[str, Any]:
    weights = f"embedded:{dataset}-lenet5.safetensors"
    return {"dataset": dataset, "victim": {"weights": weights, "model": "lenet5"}}


def _combine(preset: dict[str, Any], settings: dict[str, Any]) -> Config:
    groups = {
        field.name: group(**preset.get(field.name, {}) | settings.get(field.name, {}))
        for field in dataclasses.fields(Config)
        if (group := field.default_factory) is not dataclasses.MISSING
    }
    return Config(**preset | settings | groups)
