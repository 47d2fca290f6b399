"""An audit's report that nobody measured: report.json of format 1 with numbers to check by hand."""

import base64
import io

import numpy as np
from PIL import Image

SEEDS = [0, 1, 2]
LEARNT_FROM = {"random": "random pixels", "shapes": "random shapes", "knockoff": "real images"}


def make_run(seed, accuracy, fidelity, *, queries_to=(None, None, None), transfer=0.6):
    """A run of 20,000 queries whose curve rises to its accuracy, or without one to its fidelity."""
    end = fidelity if accuracy is None else accuracy
    ways = {"fgsm": transfer - 0.2, "pgd": transfer} if transfer is not None else None
    return {
        "seed": seed,
        "queries": 20_000,
        "accuracy": accuracy,
        "fidelity": fidelity,
        "agreement_where_right": None if accuracy is None else fidelity,
        "queries_to": dict(zip(("0.8", "0.9", "0.95"), queries_to, strict=True)),
        "transfer": ways
        and {
            way: {"epsilon": 0.1, "success": success, "images": 200}
            for way, success in ways.items()
        },
        "curve": [[q, end - (end - 0.1) * 2 ** (-q / 3000)] for q in range(0, 20_001, 1000)],
        "command": f"python -m disguide_jax.main --config configs/digits.py --config.seed={seed}",
    }


def make_cell(attack, runs, *, answers="soft", defence="", role="attack", **changes):
    """A cell that has run, watched by two detectors."""
    return {
        "attack": attack,
        "about": f"The attack {attack} is described in one sentence.",
        "role": role,
        "learnt_from": LEARNT_FROM.get(attack, ""),
        "answers": answers,
        "defence": defence,
        "about_defence": f"{defence} in words" if defence else "",
        "state": "done",
        "why": None,
        "runs": runs,
        "samples": [],
        "detectors": {
            "prada": {"alarm": 1_300, "looked_at": 1_300, "why": "distances are not normal"},
            "label_histogram": {"alarm": None, "looked_at": 20_000, "why": None},
        },
        **changes,
    }


def make_picture():
    """A PNG of noise in base64."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def make_runs(accuracies, fidelities, **options):
    return [
        make_run(seed, accuracy, fidelity, **options)
        for seed, accuracy, fidelity in zip(SEEDS, accuracies, fidelities, strict=True)
    ]


def make_cells():
    best = make_runs([0.84, 0.85, 0.86], [0.90, 0.92, 0.94], queries_to=(5_000, 10_000, None))
    best[0]["queries_to"]["0.95"] = 18_500
    hard = make_runs([0.70, 0.72, 0.68], [0.76, 0.77, 0.75], queries_to=(9_000, None, None))
    return [
        make_cell("disguide", best, samples=[make_picture()]),
        make_cell("disguide", hard, answers="hard"),
        make_cell("dfme", make_runs([0.5, 0.6, 0.55], [0.52, 0.61, 0.56])),
        make_cell("maze", [], state="failed", why="it ran out of <memory> & stopped"),
        make_cell("random", make_runs([0.4, 0.41, 0.42], [0.42, 0.44, 0.43]), role="baseline"),
        make_cell(
            "knockoff", make_runs([0.87, 0.88, 0.87], [0.95, 0.96, 0.97]), role="upper_bound"
        ),
        make_cell("disguide", make_runs([0.5] * 3, [0.52, 0.54, 0.53]), defence="round"),
        make_cell(
            "disguide",
            [],
            answers="hard",
            defence="round",
            state="cannot",
            why="the top class stays what it is",
        ),
        make_cell("disguide", make_runs([0.4] * 3, [0.40, 0.42, 0.41]), defence="noise"),
        make_cell(
            "disguide", make_runs([0.4] * 3, [0.42, 0.41, 0.43]), answers="hard", defence="noise"
        ),
    ]


def make_report(**changes):
    """Three seeds of two attacks and their comparisons, two defences and what failed."""
    return {
        "format": 1,
        "name": "audit_digits",
        "victim": {
            "about": "a LeNet-5",
            "dataset": "digits",
            "accuracy": 0.9,
            "num_classes": 10,
            "num_test_images": 500,
        },
        "budget": 20_000,
        "price_per_1000": 1.5,
        "queries_per_second": 10,
        "seeds": SEEDS,
        "cells": make_cells(),
        "defences": {
            "round": {
                "about": "rounds to 1 decimal",
                "accuracy": 0.9,
                "defended_accuracy": 0.9,
                "change": 0.04,
            },
            "noise": {
                "about": "adds noise",
                "accuracy": 0.9,
                "defended_accuracy": 0.86,
                "change": 0.3,
            },
        },
        "false_alarms": {
            "prada": {"alarms": 1, "orders": 20, "images": 500},
            "label_histogram": {"alarms": 0, "orders": 20, "images": 500},
        },
        "not_tested": ["Attacks that know the training data."],
        "provenance": {
            "command": "python -m disguide_jax.audit --config configs/audit_digits.py",
            "versions": {"python": "3.12", "jax": "0.10.0"},
            "git_commit": "0123abc",
            "hardware": {"cpu": "two cores", "devices": ["cpu:0"]},
            "contents": {"victim": "ab" * 32, "test images": "cd" * 32},
        },
        **changes,
    }
