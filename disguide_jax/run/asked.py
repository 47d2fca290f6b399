"""The victim of a run: a network whose weights are at hand, or an endpoint on the host."""

import hashlib

import jax

from disguide_jax.config import Config
from disguide_jax.core.types import Task
from disguide_jax.errors import UserError
from disguide_jax.files import datasets, transfer
from disguide_jax.methods import METHODS
from disguide_jax.run import answering
from disguide_jax.settings import get_value
from disguide_jax.victims import defences, endpoints, network
from disguide_jax.victims.contract import Contract
from disguide_jax.victims.host import Endpoint

MOST_FIDELITY_IMAGES, FIDELITY_SHARE = 1_000, 50  # of the budget one in so many


def load(config: Config) -> tuple[defences.Traced | Endpoint, Task, str]:
    """The victim behind its defence, what it classifies, and what it is in words.

    What the configuration leaves to the victim's file is filled in.

    Raises:
      UserError: something about the victim or the data set is wrong.
    """
    kind, hard_labels = answering.defence_of(config), config.labels == "hard"
    if kind is None:
        return load_undefended(config, hard_labels=hard_labels)
    # A defence changes probabilities, whatever the attacker gets of them.
    takes_labels = "soft" not in kind.changes(config.victim)
    victim, task, about = load_undefended(config, hard_labels=hard_labels and takes_labels)
    defence = kind.make(owner_of(config, task))
    about = f"{about}, behind a defence: {kind.about(config.victim)}"
    if isinstance(victim, network.Victim):
        return defences.Defended(victim, defence, hard_labels), task, about
    return defences.DefendedEndpoint(victim, defence, hard_labels=hard_labels), task, about


def owner_of(config: Config, task: Task) -> defences.Owner:
    """Whose victim it is, as far as defences ask."""
    return defences.Owner(
        config.victim, task, lambda: datasets.load(config.dataset, "train", config.data_dir)
    )


def load_undefended(
    config: Config, *, hard_labels: bool
) -> tuple[network.Victim | Endpoint, Task, str]:
    """The victim itself, see `load`; it answers with probabilities unless labels are wanted."""
    info, victim = describe(config), config.victim
    if victim.endpoint:
        kind = answering.defence_of(config)
        of_defence = kind.keys if kind else ()
        contract = Contract(
            info.num_classes,
            hard_labels=hard_labels,
            top_k=0 if "top_k" in of_defence else victim.top_k,
            decimals=0 if "decimals" in of_defence else victim.decimals,
            defence=victim.defence,
        )
        endpoint = endpoints.connect(victim, contract)
        return endpoint, task_of(info), victim.endpoint
    net, variables, model = network.load_network(
        config.victim, num_classes=info.num_classes, size=info.size, channels=info.channels
    )
    mean, std = network.normalisation(config.victim, info)
    config.victim.model, config.victim.width = model.model, model.width
    config.victim.mean, config.victim.std = mean, std
    oracle = network.make_victim(
        net,
        variables,
        mean=mean,
        std=std,
        hard_labels=hard_labels,
        knows_transform=config.victim.input_space == "post-transform",
    )
    num_params = sum(leaf.size for leaf in jax.tree.leaves(variables.params))
    task = task_of(info)._replace(mean=mean, std=std)
    return oracle, task, f"{model.model}, {num_params:,} parameters ({config.victim.weights})"


def describe(config: Config) -> datasets.Info:
    """What is classified: that of the data set or, without one, what is said of the victim.

    Raises:
      UserError: they contradict each other, or neither says it.
    """
    keys = {"num_classes": "num_classes", "channels": "channels", "size": "image_size"}
    said = {name: get_value(config.victim, key) for name, key in keys.items()}
    if not config.dataset:
        found = endpoints.sizes(config.victim)
        said = {name: value or found.get(keys[name], 0) for name, value in said.items()}
        for name, value in said.items():
            if not value:
                raise UserError(
                    f"config.victim.{keys[name]} is {value}; without a data set (config.dataset is "
                    "empty) it must be set"
                )
        half = (0.5,) * said["channels"]
        return datasets.Info(mean=half, std=half, **said)
    info = datasets.describe(config.dataset, config.data_dir)
    for name, value in said.items():
        if value not in (0, getattr(info, name)):
            raise UserError(
                f"config.victim.{keys[name]} is {value}, but that of the data set "
                f"{config.dataset} is {getattr(info, name)}"
            )
    return info


def task_of(info: datasets.Info) -> Task:
    """What is classified, with the data set's usual normalisation."""
    return Task(info.size, info.channels, info.num_classes, info.mean, info.std)


def contents_of(config: Config) -> dict[str, str]:
    """Hashes of the content of victim and test images: what they are, not where they lie.

    Raises:
      UserError: one of them is absent or damaged.
    """
    victim = config.victim  # first: of what may be absent it says more
    hashes = {"victim": (endpoints if victim.endpoint else network).fingerprint(victim)}
    if METHODS[config.method].learns_from_file:
        kept = transfer.load(config.offline.queries)
        hashes["transfer set"] = hashlib.sha256(
            kept.images.tobytes() + kept.answers.tobytes()
        ).hexdigest()
    if config.dataset:
        test = datasets.load(config.dataset, "test", config.data_dir)
        hashes["test images"] = datasets.fingerprint(test)
    kind = answering.defence_of(config)
    if kind and kind.learns:
        train = datasets.load(config.dataset, "train", config.data_dir)
        hashes["training images"] = datasets.fingerprint(train)
    return hashes


def places_of(config: Config) -> dict[str, str]:
    """Where the contents are read from, for messages."""
    victim = config.victim.endpoint or config.victim.weights
    return {
        "victim": victim,
        "transfer set": config.offline.queries,
        "test images": f"data set {config.dataset}",
        "training images": f"data set {config.dataset}",
    }


def num_fidelity_images(config: Config) -> int:
    """Images of the budget that are kept apart, to measure fidelity where there is no data set."""
    if config.dataset:
        return 0
    usual = min(MOST_FIDELITY_IMAGES, config.query_budget // FIDELITY_SHARE)
    return config.fidelity_images or max(1, usual)
