"""The pictures of a run: grids to the pixel, and an overview from what its workdir holds."""

import json

import numpy as np
import pytest
from PIL import Image

from disguide_jax.run import pictures


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_each_image_in_its_place_with_a_black_frame(tmp_path, channels):
    images = np.zeros((5, 32, 32, channels), np.uint8)
    images[1], images[4] = 255, 128
    pictures.save_image_grid(tmp_path / "grid.png", images)
    grid = read(tmp_path / "grid.png")
    assert grid.shape[:2] == (2 * 34, 3 * 34)
    expected = np.zeros((2 * 34, 3 * 34), np.uint8)
    expected[1:33, 35:67] = 255
    expected[35:67, 35:67] = 128  # image 4, second row and column
    for channel in np.moveaxis(grid.reshape(68, 102, -1), -1, 0):
        np.testing.assert_array_equal(channel, expected)


def workdir_after(tmp_path, num_lines, num_classes, metrics=("gen/disagreement", "clones/loss")):
    rng = np.random.default_rng(0)
    (tmp_path / "samples").mkdir(exist_ok=True)
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for i in range(1, num_lines + 1):
            line = {"queries": 1000 * i} | dict.fromkeys(metrics, 1 / i)
            line["victim/class_share"] = rng.dirichlet(np.ones(num_classes)).tolist()
            if i % 2 == 0:
                line |= {"eval/soft_vote_accuracy": 1 - 1 / i, "eval/clone_accuracy": [0.3, 0.5]}
                images = rng.integers(0, 256, (9, 32, 32, 1), np.uint8)
                pictures.save_image_grid(tmp_path / "samples" / f"{1000 * i:09}.png", images)
            file.write(json.dumps(line) + "\n")
    return tmp_path


@pytest.mark.parametrize("num_classes", [10, 100])
def test_the_overview_is_drawn_from_the_workdir_alone_and_always_the_same(tmp_path, num_classes):
    workdir = workdir_after(tmp_path, 40, num_classes)
    before = sorted(workdir.rglob("*"))
    pictures.save_overview(workdir, victim_accuracy=0.95, size=32)
    first = (workdir / "overview.png").read_bytes()
    assert sorted(workdir.rglob("*")) == sorted([*before, workdir / "overview.png"])
    assert read(workdir / "overview.png").std() > 10, "not a blank sheet"
    pictures.save_overview(workdir, victim_accuracy=0.95, size=32)
    assert (workdir / "overview.png").read_bytes() == first
    pictures.save_overview(workdir, victim_accuracy=0.5, size=32)
    assert (workdir / "overview.png").read_bytes() != first


@pytest.mark.parametrize("num_lines", [0, 1])
def test_a_run_that_has_hardly_begun_can_be_drawn(tmp_path, num_lines):
    pictures.save_overview(workdir_after(tmp_path, num_lines, 10), victim_accuracy=0.95, size=32)
    assert (tmp_path / "overview.png").exists()


def test_the_images_picked_are_not_all_gray(tmp_path):
    images = np.zeros((64, 32, 32, 3), np.uint8)
    images += np.arange(64, dtype=np.uint8)[:, None, None, None] + 100
    images[::8] = 0
    pictures.save_image_grid(tmp_path / "grid.png", images)
    picked = pictures.some_tiles(tmp_path / "grid.png", 34).reshape(5, 34, 34, 3)[:, 17, 17, 0]
    expected = images[[0, 9, 18, 27, 36], 0, 0, 0]
    np.testing.assert_array_equal(picked, expected)
    pictures.save_image_grid(tmp_path / "grid.png", images[:5])  # two rows of three
    assert pictures.some_tiles(tmp_path / "grid.png", 34).shape == (68, 34, 3)


def test_metrics_that_a_method_does_not_have_are_left_out(tmp_path):
    pictures.save_overview(
        workdir_after(tmp_path, 4, 10, metrics=()), victim_accuracy=0.95, size=32
    )
    assert (tmp_path / "overview.png").exists()


def test_series_are_the_lines_that_have_the_metric():
    lines = [{"queries": 1, "a": 5}, {"queries": 2}, {"queries": 3, "a": 7}]
    queries, values = pictures.series(lines, "a")
    assert (queries.tolist(), values.tolist()) == ([1, 3], [5, 7])
    assert [len(x) for x in pictures.series(lines, "b")] == [0, 0]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1200, "1.2k"), (29_984, "30k"), (999_999, "1M"), (8_000_000, "8M")],
)
def test_numbers_of_queries_are_written_short(number, text):
    assert pictures.short_number(number) == text
