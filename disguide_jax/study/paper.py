"""The paper's numbers, and what is run to stand beside them."""

from typing import Any, NamedTuple

from disguide_jax.study.results import Cell

NOT_REPORTED = "/"
FULL, MEDIUM, SMALL, REHEARSAL = "full", "medium", "small", "rehearsal"


# What is run


class Family(NamedTuple):
    """DisGUIDE and an earlier system for either kind of labels, shared with scripts/compare.py."""

    soft: Cell
    dfme: Cell
    hard: Cell
    dfms: Cell


def family(name: str) -> Family:
    """The configurations NAME_soft, NAME_dfme and so on."""
    return Family(*(Cell(name, f"{name}_{field}") for field in Family._fields))


def vary(scale: str, cell: Cell, *overrides: tuple[str, Any]) -> Cell:
    """A cell under other settings, among the results of `scale`."""
    return Cell(scale, cell.config, cell.overrides + overrides)


FASHION, DIGITS = family("fashion"), family("digits")
C10_SOFT, C10_HARD, C100_SOFT, C100_HARD, C100_HARD_R34 = (
    Cell(FULL, name) for name in ("c10_soft", "c10_hard", "c100_soft", "c100_hard", "c100_hard_r34")
)
# The studies of stability have 8M queries of 20M "to save time"; the digits likewise fewer.
C10_SHORT = vary(FULL, C10_SOFT, ("query_budget", 8_000_000))
DIGITS_SHORT = ("query_budget", 9_600)


class Base(NamedTuple):
    """The cells whose settings the studies of one scale vary."""

    soft: Cell
    dfme: Cell
    hard: Cell
    short: Cell  # soft labels, with the budget of the studies of stability
    colour: Cell  # the same for Tables 3 and 4, whose images must have colours
    colour_hard: Cell
    replay_sizes: tuple[int, ...]  # the same shares of the short budget at all scales


BASES = {
    FULL: Base(
        soft=C10_SOFT,
        dfme=Cell(FULL, "dfme_c10_soft"),
        hard=C10_HARD,
        short=C10_SHORT,
        colour=C10_SHORT,
        colour_hard=C10_HARD,
        replay_sizes=(50_000, 100_000, 250_000, 500_000, 1_000_000),
    ),
    MEDIUM: Base(
        soft=FASHION.soft,
        dfme=FASHION.dfme,
        hard=FASHION.hard,
        short=FASHION.soft,
        colour=Cell(MEDIUM, "c10_soft_narrow"),
        colour_hard=Cell(MEDIUM, "c10_hard_narrow"),
        replay_sizes=(1_250, 2_500, 6_250, 12_500, 25_000),
    ),
    SMALL: Base(
        soft=DIGITS.soft,
        dfme=DIGITS.dfme,
        hard=vary(SMALL, DIGITS.hard, ("query_budget", 24_000), ("replay.size", 24_000)),
        short=vary(SMALL, DIGITS.soft, DIGITS_SHORT),
        colour=Cell(SMALL, "colour_digits_soft", (DIGITS_SHORT,)),
        colour_hard=Cell(SMALL, "colour_digits_hard"),
        replay_sizes=(60, 120, 300, 600, 1_200),
    ),
}
# Where the earlier systems are run, too: the name of the data set, and everybody's budget.
MEASURED = {MEDIUM: (FASHION, "Fashion-MNIST", 200_000), SMALL: (DIGITS, "digits", 48_000)}


# Tables


class Paper(NamedTuple):
    """What the paper has of one cell, in per cent."""

    victim: str = NOT_REPORTED
    final: str = NOT_REPORTED
    maximum: str = NOT_REPORTED
    individual: str = NOT_REPORTED
    gain: str = NOT_REPORTED  # over the best earlier system (Section 5.1)


class Row(NamedTuple):
    """One line of a table of accuracies."""

    setting: str
    technique: str
    cell: Cell | None  # None: only ever reported
    paper: Paper = Paper()


OWN = "DisGUIDE"  # the technique
FINAL = {  # Tables 1, 5 and 6; "reported" are numbers from the earlier papers in Table 1
    FULL: (
        Row("CIFAR-10, soft", "DFME, reported", None, Paper("95.54", "88.10")),
        Row("CIFAR-10, soft", "DFMS, reported", None, Paper("95.59", "91.24")),
        Row(
            "CIFAR-10, soft",
            OWN,
            C10_SOFT,
            Paper("95.54", "94.02 ± 0.25", "94.26 ± 0.20", "93.95 ± 0.15", "2.78 ± 0.25"),
        ),
        Row("CIFAR-10, hard", "DFMS, reported", None, Paper("95.59", "84.51")),
        Row(
            "CIFAR-10, hard",
            OWN,
            C10_HARD,
            Paper("95.54", "87.93 ± 1.74", "88.94 ± 0.92", "87.33 ± 0.98", "3.42 ± 1.74"),
        ),
        Row(
            "CIFAR-100, soft",
            OWN,
            C100_SOFT,
            Paper("77.52", "69.47 ± 0.88", "69.83 ± 1.01", "68.84 ± 0.54"),
        ),
        Row("CIFAR-100, hard", "DFMS, reported", None, Paper("78.52", "43.56")),
        Row(
            "CIFAR-100, hard",
            OWN,
            C100_HARD,
            Paper("77.70", "62.04 ± 1.03", "62.52 ± 0.91", "60.55 ± 0.54", "18.48 ± 1.03"),
        ),
        Row(
            "CIFAR-100, hard, ResNet-34 victim",
            OWN,
            C100_HARD_R34,
            Paper("77.52", "58.72 ± 2.42"),
        ),
    ),
    **{
        scale: (
            Row(f"{dataset}, soft", "DFME", cells.dfme),
            Row(f"{dataset}, soft", OWN, cells.soft),
            Row(f"{dataset}, hard", "DFMS", cells.dfms),
            Row(f"{dataset}, hard", OWN, cells.hard),
        )
        for scale, (cells, dataset, _) in MEASURED.items()
    },
}


class Race(NamedTuple):
    """Table 2: how many queries DisGUIDE needs to what an earlier system ended with."""

    setting: str
    earlier: str
    cell: Cell
    accuracy: float | Cell  # reported, or measured here
    budget: int  # of the earlier system
    paper: str = NOT_REPORTED
    paper_reduction: str = NOT_REPORTED  # of the budget, in per cent (Section 5.2)


RACES = {
    # With soft labels the paper's intervals of the reduction are shares of 8M, its means of 20M.
    FULL: (
        Race(
            "CIFAR-10, soft", "DFME", C10_SOFT, 0.8810, 20_000_000, "3.13M ± 0.57M", "84.35 ± 7.13"
        ),
        Race(
            "CIFAR-10, soft", "DFMS", C10_SOFT, 0.9124, 20_000_000, "7.01M ± 1.30M", "64.95 ± 16.25"
        ),
        Race(
            "CIFAR-10, hard", "DFMS", C10_HARD, 0.8451, 8_000_000, "4.02M ± 1.43M", "49.75 ± 17.88"
        ),
        Race(
            "CIFAR-100, hard",
            "DFMS",
            C100_HARD,
            0.4356,
            10_000_000,
            "3.87M ± 0.37M",
            "61.30 ± 3.70",
        ),
    ),
    **{
        scale: (
            Race(f"{dataset}, soft", "DFME", cells.soft, cells.dfme, budget),
            Race(f"{dataset}, hard", "DFMS", cells.hard, cells.dfms, budget),
        )
        for scale, (cells, dataset, budget) in MEASURED.items()
    },
}

NO_GRAY = ("generator.gray_every", 0)
GRAYSCALE = {  # Table 3
    scale: (
        Row("soft", "without grayscale", vary(scale, base.colour, NO_GRAY), Paper(final=none)),
        Row("soft", "with grayscale", base.colour, Paper(final=some)),
        Row(
            "hard",
            "without grayscale",
            vary(scale, base.colour_hard, NO_GRAY),
            Paper(final=none_hard),
        ),
        Row("hard", "with grayscale", base.colour_hard, Paper(final=some_hard)),
    )
    for scale, base in BASES.items()
    for none, some in [("93.25 ± 0.15", "93.36 ± 0.16")]
    for none_hard, some_hard in [("85.54 ± 2.47", "87.93 ± 1.74")]
}

KNOWN_TRANSFORM = ("victim.input_space", "post-transform")
TRANSFORM = {  # Table 4
    scale: (
        Row("soft", "knows nothing", base.colour, Paper("95.54", "93.36 ± 0.16")),
        Row(
            "soft",
            "knows the input transform",
            vary(scale, base.colour, KNOWN_TRANSFORM),
            Paper("95.54", "93.45 ± 0.23"),
        ),
    )
    for scale, base in BASES.items()
}

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
        Row(labels, name, cell)
        for labels, plain in (("soft", base.short), ("hard", base.hard))
        for name, cell in {
            "the paper's settings": plain,
            **{name: vary(scale, plain, *changes) for name, changes in IMPROVEMENTS.items()},
        }.items()
    ]
    for scale, base in BASES.items()
}


# Figures

FIG2 = {scale: {OWN: base.soft, "DFME": base.dfme} for scale, base in BASES.items()}
FIG3 = {
    scale: {size: vary(scale, base.short, ("replay.size", size)) for size in base.replay_sizes}
    for scale, base in BASES.items()
}
FIG4 = {  # with the largest replay of Figure 3, whose runs are those of b = 3
    scale: {b: plain if b == 3 else vary(scale, plain, ("replay.batches", b)) for b in range(1, 6)}
    for scale, sizes in FIG3.items()
    for plain in [sizes[max(sizes)]]
}
# Read in the text of Section 5.3, for the figures' points are not given in numbers.
FIG3_PAPER = {1_000_000: 0.9336}
FIG4_PAPER = {3: 0.9336, 5: 0.9374}
FIG5 = {FULL: C10_SOFT, MEDIUM: FASHION.soft, SMALL: BASES[SMALL].colour}

PRECISION = {
    scale: {name: vary(scale, base.soft, ("precision", name)) for name in ("float32", "bfloat16")}
    for scale, base in BASES.items()
}


# Victims

# What the paper's victims have on the test images, in per cent (Section 4).
VICTIMS = {
    "victims/cifar10-resnet34_8x.safetensors": 95.54,
    "victims/cifar100-resnet34_8x.safetensors": 77.52,
    "victims/cifar100-resnet18_8x.safetensors": 77.70,
}
VICTIM_MARGIN = 1.0  # per cent below the paper's from which a comparison means little
