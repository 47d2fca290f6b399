"""The groups of a configuration: victim, generator, clones, replay, schedule, methods.

Each field carries its bounds, whether a resume may change it, and its help.
"""

import dataclasses

from disguide_jax.settings import setting

EMBEDDED = "embedded:"  # weights that lie in disguide_jax/assets
RANDOM_WEIGHTS = "random"
MODELS = (
    "resnet18_8x, resnet34_8x (each also with _pool); resnet20, resnet32, resnet44, resnet56 "
    "(each also with _b); wrnD_K, such as wrn16_4 or wrn28_10 (also with _bias); "
    "vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn (each also with _512, _4096, _7x7); mobilenet_v2 "
    "(also with _tv, _c100); densenet121 (also with _tv, _tv_pool, _c100); lenet5, lenet5_half; or "
    "package.module:Name, a Flax module; see disguide_jax/models"
)
SOFT_LOSSES = ("l1", "cross_entropy", "kl")
SIZES = range(8, 225, 4)  # pixels, that height and width of all images may have
SIZES_IN_WORDS = f"a multiple of {SIZES.step} from {SIZES[0]} to {SIZES[-1]}"


def are_growing_fractions(fractions: tuple[float, ...]) -> bool:
    """Whether they are fractions of a budget, one after the other."""
    return list(fractions) == sorted(set(fractions)) and all(0 < f < 1 for f in fractions)


@dataclasses.dataclass
class VictimConfig:
    """The model that is copied, seen only through its answers."""

    weights: str = setting(
        "",
        'a .safetensors, .pt or .pth file, "embedded:NAME", or "random"; what is in it counts, '
        "not where it lies; empty where there is an endpoint",
    )
    endpoint: str = setting(
        "",
        "in place of weights, what answers: python:package.module:function, onnx:FILE, or the "
        "address of a service, http://... or https://...",
    )
    model: str = setting(
        "",
        "what the weights must be of: it matters where names and shapes do not tell, as with "
        "resnet18_8x_pool, and for package.module:Name, a Flax module; empty takes what they are",
        auto=True,
    )
    width: int = setting(
        0, "of random weights or a Flax module; 0 is the model's usual one", least=0, auto=True
    )
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
    image_size: int = setting(
        0,
        "height and width of its images, a multiple of 4; 0 is the data set's",
        fits=lambda size: size == 0 or size in SIZES,
        must_be=f"{SIZES_IN_WORDS}, or 0 for that of the data set",
        auto=True,
    )
    channels: int = setting(
        0,
        "of its images; 0 is the data set's",
        fits=lambda channels: channels in (0, 1, 3),
        must_be="1 or 3, or 0 for that of the data set",
        auto=True,
    )
    num_classes: int = setting(
        0,
        "that it knows; 0 is the data set's",
        fits=lambda num: num != 1 and num >= 0,
        must_be="at least 2, or 0 for that of the data set",
        auto=True,
    )
    top_k: int = setting(
        0,
        "how many classes an endpoint's probabilities name, or the defence top_k; 0: all",
        least=0,
    )
    decimals: int = setting(
        0,
        "to which an endpoint, or the defence round, rounds its probabilities; 0: it does not",
        least=0,
        most=12,
    )
    defence: str = setting(
        "",
        "what stands between the victim and whoever asks: round, top_k, label_only, noise, "
        "high_confidence, reverse_sigmoid or misinformation; see disguide_jax/victims/defences",
    )
    noise_scale: float = setting(0.1, "of noise: its standard deviation", above=0)
    noise_keeps_label: bool = setting(False, "of noise: the likeliest class stays the likeliest")
    cut_off: float = setting(
        0.5, "of high_confidence: less likely classes than this are not named", above=0, most=1
    )
    sigmoid_beta: float = setting(1.0, "of reverse_sigmoid: how much is taken off", above=0)
    sigmoid_gamma: float = setting(0.1, "of reverse_sigmoid: how soon it is", above=0)
    misinformation_nu: float = setting(1000.0, "of misinformation: how sudden it is", above=0)
    misinformation_tau: float = setting(
        0.9, "of misinformation: a victim less sure than this is unsure", least=0, most=1
    )
    misinformation_model: str = setting(
        "lenet5", "of misinformation: the network that learns to be wrong, as clones.model"
    )
    logits: bool = setting(False, "an ONNX file ends with logits, before a softmax")
    layout: str = setting(
        "", "of an ONNX file's input; empty is what its shape tells", one_of=("", "NCHW", "NHWC")
    )
    pixels: str = setting(
        "",
        "what an ONNX file's input holds; empty is 0..255 for integers and 0..1 for floats, which "
        "mean and std then normalise where they are given",
        one_of=("", "0..255", "0..1", "-1..1"),
    )
    image_format: str = setting(
        "list",
        "how a service takes an image: nested lists of 0 to 255, or base64 of a PNG",
        one_of=("list", "png"),
    )
    images_per_request: int = setting(32, "at most, to a service", least=1, resume=True)
    concurrency: int = setting(
        1, "requests that a service gets at a time", least=1, most=256, resume=True
    )
    requests_per_second: float = setting(
        0.0, "at most, to a service; 0: as fast as it answers", least=0, resume=True
    )
    timeout_seconds: float = setting(
        30.0, "that a service has to answer a request", above=0, resume=True
    )
    retries: int = setting(
        6,
        "of a request that a service answers with 429 or 5xx, or not at all; each is counted",
        least=0,
        resume=True,
    )
    token_env: str = setting(
        "",
        "the environment variable with a service's token, which is sent as a bearer's and never "
        "written anywhere",
        resume=True,
    )
    authorised_by: str = setting(
        "",
        "who allows that a service beyond this machine is copied, and when; it must be set for one",
        resume=True,
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

    model: str = setting("resnet18_8x", MODELS)
    width: int = setting(0, "0 is the model's usual one", least=0, auto=True)
    steps: int = setting(
        5, "updates on paid batches in a round; disguide makes 1 whatever this is", least=1
    )
    soft_loss: str = setting(
        "l1",
        "for soft labels; the paper says cross_entropy",
        one_of=SOFT_LOSSES,
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
        fits=are_growing_fractions,
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
class OfflineConfig:
    """What offline learns from, without a query."""

    queries: str = setting(
        "", "a transfer set, from scripts/export_queries.py; what is in it counts", resume=True
    )
    epochs: int = setting(50, "passes over it, in random batches", least=1)


@dataclasses.dataclass
class DfmsConfig:
    """The stages of dfms; its last one follows the keys that all methods have."""

    proxy_images: int = setting(50_000, "synthetic images to start from, a batch or more")
    gan_epochs: int = setting(200, "of the GAN's training on proxy images", least=0)
    validation_images: int = setting(20_000, "queries, twice or more; a batch or more")
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
    validate_last: bool = setting(
        False, "pay for validation images of the last generator, too, and choose once more"
    )
    adam_b1: float = setting(0.5, "of generator and discriminator", least=0, below=1)
    flip: bool = setting(True, "mirror half of the images")
