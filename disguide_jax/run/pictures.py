"""What a run shows: its generator's images, and itself at a glance."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from disguide_jax.files import atomic
from disguide_jax.files.workdir import read_log

FRAME = 1  # black pixels around each image of a grid
MAX_COLUMNS, MAX_PIXELS = 8, 1024  # of a grid, which has as many rows as columns
MAX_TIMES = 8  # columns of images in the overview
NUM_LATENTS = 5  # rows of them, from the diagonal of a grid
LARGE = 64  # pixels of images which the overview shows smaller than they are


def num_images(size: int) -> int:
    """How many of a generator's images, of so many pixels in height and width, a grid shows."""
    columns = min(MAX_PIXELS // (size + 2 * FRAME), MAX_COLUMNS)
    return max(columns, NUM_LATENTS) ** 2


def save_image_grid(path: pathlib.Path, images: np.ndarray) -> None:
    """Writes uint8 images [N, H, W, channels] as one PNG, in rows of about sqrt(N)."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    frame = (FRAME, FRAME)
    pixels = np.pad(images, [(0, rows * columns - len(images)), frame, frame, (0, 0)])
    _, height, width, channels = pixels.shape
    grid = pixels.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    grid = grid.reshape(rows * height, columns * width, channels)
    Image.fromarray(grid[..., 0] if channels == 1 else grid).save(path)


def save_overview(workdir: pathlib.Path, *, victim_accuracy: float | None, size: int) -> None:
    """Writes WORKDIR/overview.png from its metrics.jsonl and samples/ alone.

    Args:
      workdir: of the run.
      victim_accuracy: on the test images; None where nobody knows their labels.
      size: height and width of the generator's images in pixels.
    """
    lines = read_log(workdir)
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    panels = figure.subplots(2, 2)
    draw_accuracy(panels[0, 0], lines, victim_accuracy)
    draw_samples(panels[0, 1], sorted((workdir / "samples").glob("*.png")), size)
    draw_classes(panels[1, 0], lines)
    draw_disagreement(panels[1, 1], lines)
    for panel in (panels[0, 0], panels[1, 0], panels[1, 1]):
        panel.xaxis.set_major_formatter(queries_formatter())
        panel.set_xlabel("queries")
    last = lines[-1]["queries"] if lines else 0
    figure.suptitle(f"{workdir.absolute().name}, {last:,} queries")
    with atomic.replacing(workdir / "overview.png") as file:
        figure.savefig(file, dpi=100, metadata={"Software": None}, format="png")


def draw_accuracy(
    axes: Axes, lines: Sequence[dict[str, Any]], victim_accuracy: float | None
) -> None:
    """Soft vote, single clones, and the victim as a line; fidelity where no labels are known."""
    axes.set_ylim(0, 1.04)
    axes.grid(alpha=0.3)
    if victim_accuracy is None:
        axes.plot(*series(lines, "eval/fidelity"), color="tab:blue", linewidth=2, marker=".")
        axes.set(title="fidelity: how often the clones say what the victim says")
        axes.set_xlim(left=0)
        return
    queries, soft_vote = series(lines, "eval/soft_vote_accuracy")
    _, clones = series(lines, "eval/clone_accuracy")
    for i, accuracy in enumerate(clones.T):
        label = "single clones" if i == 0 else None
        axes.plot(queries, accuracy, color="tab:gray", linewidth=0.8, label=label)
    axes.plot(queries, soft_vote, color="tab:blue", linewidth=2, marker=".", label="soft vote")
    axes.axhline(victim_accuracy, color="black", linestyle="--", linewidth=1, label="victim")
    axes.set(title="accuracy on the test images")
    axes.set_xlim(left=0)
    axes.legend(frameon=False)


def draw_samples(axes: Axes, paths: Sequence[pathlib.Path], size: int) -> None:
    """The same latent vectors in each row, later from left to right."""
    tile = size + 2 * FRAME
    axes.set(title="generated images, from the same latent vectors", xticks=[], yticks=[])
    axes.set_frame_on(False)
    if not paths:
        return
    picked = np.unique(np.linspace(0, len(paths) - 1, MAX_TIMES).round().astype(int))
    columns = [some_tiles(paths[i], tile) for i in picked]
    interpolation = "nearest" if size < LARGE else "antialiased"
    axes.imshow(np.concatenate(columns, axis=1), interpolation=interpolation)
    names = [short_number(int(paths[i].stem)) for i in picked]
    axes.set_xticks([tile * (i + 0.5) for i in range(len(picked))], names)
    axes.set_xlabel("queries")


def some_tiles(path: pathlib.Path, tile: int) -> np.ndarray:
    """The first images of a grid's diagonal, one below the other, [H, tile, 3].

    Those of a column would all be gray where every eighth image is.
    """
    with Image.open(path) as image:
        grid = np.asarray(image.convert("RGB"))
    places = [slice(i * tile, (i + 1) * tile) for i in range(NUM_LATENTS)]
    return np.concatenate([grid[place, place] for place in places if place.stop <= len(grid)])


def draw_classes(axes: Axes, lines: Sequence[dict[str, Any]]) -> None:
    """How often the victim has answered with each class."""
    queries, shares = series(lines, "victim/class_share")
    axes.set(title="classes that the victim has named")
    if not len(queries):
        return
    shares = np.asarray(shares)
    num_classes = shares.shape[1]
    if num_classes <= 10:
        colours = [matplotlib.colormaps["tab10"](i) for i in range(num_classes)]
        axes.stackplot(queries, shares.T, labels=[*map(str, range(num_classes))], colors=colours)
        axes.set(ylabel="share of the answers", ylim=(0, 1), xlim=(queries[0], queries[-1] + 1))
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    else:
        edges = np.concatenate([[0], queries])
        mesh = axes.pcolormesh(edges, np.arange(num_classes + 1), shares.T)
        axes.set(ylabel="class")
        axes.figure.colorbar(mesh, ax=axes, label="share of the answers")


def draw_disagreement(axes: Axes, lines: Sequence[dict[str, Any]]) -> None:
    """What the generator seeks, and what the clones still have to learn."""
    axes.set(title="disagreement and loss of the clones")
    queries, values = series(lines, "gen/disagreement")
    axes.plot(queries, values, color="tab:red", label="disagreement")
    axes.set_ylabel("disagreement of the clones" if len(queries) else "")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    losses = axes.twinx()
    losses.plot(*series(lines, "clones/loss"), color="tab:purple", label="clones' loss")
    losses.set_ylabel("clones' loss")
    losses.set_ylim(bottom=0)
    handles = axes.get_lines() + losses.get_lines()
    shown = [handle for handle in handles if np.size(handle.get_xdata())]
    axes.legend(shown, [str(h.get_label()) for h in shown], frameon=False, loc="upper right")


def series(lines: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Queries and values of the lines of the log that have this metric."""
    points = [(line["queries"], line[name]) for line in lines if name in line]
    queries, values = zip(*points, strict=True) if points else ((), ())
    return np.array(queries), np.array(values)


def queries_formatter() -> matplotlib.ticker.Formatter:
    """Writes numbers of queries short."""
    return matplotlib.ticker.FuncFormatter(lambda x, _: short_number(x))


def short_number(x: float) -> str:
    """Three digits: 1,200 as 1.2k, 29,984 as 30k and 8,000,000 as 8M."""
    x = float(f"{x:.3g}")
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if x >= size:
            return f"{x / size:g}{unit}"
    return f"{x:g}"
