"""The victim, which shows only its answers, and the test images that it is compared on."""

import pathlib
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from classifiers import make_classifier
from safetensors.torch import load_file
from torch import Tensor, nn

Classify = Callable[[Tensor], Tensor]  # images -> classes [N]


class Victim(nn.Module):
    """Images [N, channels, 32, 32] in [-1, 1] -> probabilities [N, K] or labels [N]."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        told, self.hard = config.victim, config.labels == "hard"
        state = load_file(told.path) if told.path else {}
        last = state.get("linear.bias", state.get("fc2.bias"))
        usual = 100 if config.dataset.endswith("100") else 10
        self.channels, self.num_classes = len(told.mean), usual if last is None else len(last)
        self.network = make_classifier(told.model, told.width, self.channels, self.num_classes)
        if state:
            self.network.load_state_dict(state)
        # Pixels p in [0, 1] are x = 2p - 1, so (p - m) / s = (x - (2m - 1)) / (2s).
        self.mean = 2 * torch.tensor(told.mean).view(1, -1, 1, 1) - 1
        self.std = 2 * torch.tensor(told.std).view(1, -1, 1, 1)
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Answers a query."""
        logits = self.network((images - self.mean) / self.std)
        return logits.argmax(1) if self.hard else logits.softmax(1)

    def classify(self, images: Tensor) -> Tensor:
        """The classes that it names."""
        answers = self(images)
        return answers if self.hard else answers.argmax(1)


def compare(victim: Classify, vote: Classify, path: pathlib.Path) -> dict[str, float]:
    """Accuracy of victim and vote on the test images of an .npz, and how often they agree."""
    with np.load(path) as file:
        images, labels = (torch.from_numpy(file[f"test_{n}"]) for n in ("images", "labels"))
    images = images.reshape(*images.shape[:3], -1).movedim(-1, 1)
    if (side := images.shape[-1]) not in (28, 32):
        raise SystemExit(f"{path}: its images are {side}x{side}; here they must be 28x28 or 32x32")
    images = F.pad(images, [(32 - images.shape[-1]) // 2] * 4) / 127.5 - 1  # the margin is black
    named, voted = (torch.cat([f(i) for i in images.split(500)]) for f in (victim, vote))
    pairs = {"accuracy": (voted, labels), "fidelity": (voted, named)}
    pairs["victim_accuracy"] = (named, labels)
    return {name: (a == b).float().mean().item() for name, (a, b) in pairs.items()}
