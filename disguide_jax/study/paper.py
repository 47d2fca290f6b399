"""The paper's numbers, and what is run to stand beside them."""

from typing import Any, NamedTuple

from disguide_jax.study.results import Cell

NOT_REPORTED = "/"


class Paper(NamedTuple):
    """What the paper has of one cell, in per cent (Tables 1, 5 and 6)."""

    victim: str = NOT_REPORTED
    final: str = NOT_REPORTED
    maximum: str = NOT_REPORTED
    individual: str = NOT_REPORTED


class Row(NamedTuple):
    """One line of a table of accuracies."""

    setting: str
    technique: str
    cell: Cell | None  # None: only ever reported
    paper: Paper = Paper()


FULL, SMALL, REHEARSAL = "full", "small", "rehearsal"
C10_SOFT, C10_HARD, C100_SOFT, C100_HARD, C100_HARD_R34 = (
    Cell(FULL, name) for name in ("c10_soft", "c10_hard", "c100_soft", "c100_hard", "c100_hard_r34")
)
# These are also those of scripts/compare.py.
SOFT, HARD, DFME, DFMS = (
    Cell("digits", f"digits_{name}") for name in ("soft", "hard", "dfme", "dfms")
)

FINAL = {  # Tables 1, 5 and 6; "reported" are numbers from the earlier papers in Table 1
    FULL: (
        Row("CIFAR-10, soft", "DFME, reported", None, Paper("95.54", "88.10")),
        Row("CIFAR-10, soft", "DFMS, reported", None, Paper("95.59", "91.24")),
        Row(
            "CIFAR-10, soft",
            "DisGUIDE",
            C10_SOFT,
            Paper("95.54", "94.02 ± 0.25", "94.26 ± 0.20", "93.95 ± 0.15"),
        ),
        Row("CIFAR-10, hard", "DFMS, reported", None, Paper("95.59", "84.51")),
        Row(
            "CIFAR-10, hard",
            "DisGUIDE",
            C10_HARD,
            Paper("95.54", "87.93 ± 1.74", "88.94 ± 0.92", "87.33 ± 0.98"),
        ),
        Row(
            "CIFAR-100, soft",
            "DisGUIDE",
            C100_SOFT,
            Paper("77.52", "69.47 ± 0.88", "69.83 ± 1.01", "68.84 ± 0.54"),
        ),
        Row("CIFAR-100, hard", "DFMS, reported", None, Paper("78.52", "43.56")),
        Row(
            "CIFAR-100, hard",
            "DisGUIDE",
            C100_HARD,
            Paper("77.70", "62.04 ± 1.03", "62.52 ± 0.91", "60.55 ± 0.54"),
        ),
        Row(
            "CIFAR-100, hard, ResNet-34 victim",
            "DisGUIDE",
            C100_HARD_R34,
            Paper("77.52", "58.72 ± 2.42"),
        ),
    ),
    SMALL: (
        Row("digits, soft", "DFME", DFME),
        Row("digits, soft", "DisGUIDE", SOFT),
        Row("digits, hard", "DFMS", DFMS),
        Row("digits, hard", "DisGUIDE", HARD),
    ),
}


class Race(NamedTuple):
    """Table 2: how many queries DisGUIDE needs to what an earlier system ended with."""

    setting: str
    earlier: str
    cell: Cell
    accuracy: float | Cell  # reported, or measured here
    budget: str
    paper: str = NOT_REPORTED


RACES = {
    FULL: (
        Race("CIFAR-10, soft", "DFME", C10_SOFT, 0.8810, "20M", "3.13M ± 0.57M"),
        Race("CIFAR-10, soft", "DFMS", C10_SOFT, 0.9124, "20M", "7.01M ± 1.30M"),
        Race("CIFAR-10, hard", "DFMS", C10_HARD, 0.8451, "8M", "4.02M ± 1.43M"),
        Race("CIFAR-100, hard", "DFMS", C100_HARD, 0.4356, "10M", "3.87M ± 0.37M"),
    ),
    SMALL: (
        Race("digits, soft", "DFME", SOFT, DFME, "48k"),
        Race("digits, hard", "DFMS", HARD, DFMS, "48k"),
    ),
}

# The paper's studies of stability have 8M queries of 20M "to save time".
SHORT = {FULL: (("query_budget", 8_000_000),), SMALL: (("query_budget", 9_600),)}
NO_GRAY = (("generator.gray_every", 0),)


def short(scale: str, *overrides: tuple[str, Any], colour: bool = False) -> Cell:
    """A soft-label cell with the budget of the studies of stability."""
    config = {FULL: "c10_soft", SMALL: "colour_digits_soft" if colour else "digits_soft"}[scale]
    return Cell(scale, config, SHORT[scale] + overrides)


GRAYSCALE = {  # Table 3; of gray images the digits must be in colour
    scale: (
        Row("soft", "without grayscale", short(scale, *NO_GRAY, colour=True), Paper(final=none)),
        Row("soft", "with grayscale", short(scale, colour=True), Paper(final=some)),
        Row("hard", "without grayscale", hard._replace(overrides=NO_GRAY), Paper(final=none_hard)),
        Row("hard", "with grayscale", hard, Paper(final=some_hard)),
    )
    for scale, hard in ((FULL, C10_HARD), (SMALL, Cell(SMALL, "colour_digits_hard")))
    for none, some in [("93.25 ± 0.15", "93.36 ± 0.16")]
    for none_hard, some_hard in [("85.54 ± 2.47", "87.93 ± 1.74")]
}

TRANSFORM = {  # Table 4
    scale: (
        Row("soft", "knows nothing", short(scale, colour=True), Paper("95.54", "93.36 ± 0.16")),
        Row(
            "soft",
            "knows the input transform",
            short(scale, ("victim.input_space", "post-transform"), colour=True),
            Paper("95.54", "93.45 ± 0.23"),
        ),
    )
    for scale in (FULL, SMALL)
}

# Figure 3: 0.05M to 1M images of 8M queries; small, the same shares of the budget.
REPLAY_SIZES = {
    FULL: (50_000, 100_000, 250_000, 500_000, 1_000_000),
    SMALL: (60, 120, 300, 600, 1_200),
}
REPLAY_BATCHES = (1, 2, 3, 4, 5)  # Figure 4
DEFAULT_SIZE = {FULL: 1_000_000, SMALL: 1_200}
FIG3 = {
    scale: {size: short(scale, ("replay.size", size)) for size in sizes}
    for scale, sizes in REPLAY_SIZES.items()
}
FIG4 = {
    scale: {
        b: short(scale, ("replay.size", size), *([("replay.batches", b)] if b != 3 else []))
        for b in REPLAY_BATCHES
    }
    for scale, size in DEFAULT_SIZE.items()
}
# Read in the text of Section 5.3, for the figures' points are not given in numbers.
FIG3_PAPER = {1_000_000: 0.9336}
FIG4_PAPER = {3: 0.9336, 5: 0.9374}

FIG2 = {
    FULL: {"DisGUIDE": C10_SOFT, "DFME": Cell(FULL, "dfme_c10_soft")},
    SMALL: {"DisGUIDE": SOFT, "DFME": DFME},
}
FIG5 = {FULL: C10_SOFT, SMALL: short(SMALL, colour=True)}

IMPROVEMENTS = {  # what might beat the paper's settings at equal queries
    "b = 5": (("replay.batches", 5),),
    "cosine schedule": (("schedule.shape", "cosine"),),
    "three clones": (("num_clones", 3),),
    "four clones": (("num_clones", 4),),
    "average of weights": (("clones.average_decay", 0.999),),
    "replayed images shifted": (("replay.crop_padding", 2),),
    "replayed images mirrored": (("replay.flip", True),),
}
BEST = {
    scale: [
        Row(labels, name, cell._replace(overrides=(*cell.overrides, *override)))
        for labels, cell in (("soft", short(scale)), ("hard", hard))
        for name, override in {"the paper's settings": (), **IMPROVEMENTS}.items()
    ]
    for scale, hard in (
        (FULL, C10_HARD),
        (SMALL, Cell(SMALL, "digits_hard", (("query_budget", 24_000), ("replay.size", 24_000)))),
    )
}

PRECISION = {
    scale: {name: Cell(scale, config, (("precision", name),)) for name in ("float32", "bfloat16")}
    for scale, config in ((FULL, "c10_soft"), (SMALL, "digits_soft"))
}

# What the paper's victims have on the test images, in per cent (Section 4).
VICTIMS = {
    "victims/cifar10-resnet34_8x.safetensors": 95.54,
    "victims/cifar100-resnet34_8x.safetensors": 77.52,
    "victims/cifar100-resnet18_8x.safetensors": 77.70,
}
VICTIM_MARGIN = 1.0  # per cent below the paper's from which a comparison means little
