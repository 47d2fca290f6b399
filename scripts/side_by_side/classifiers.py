"""The classifiers by name, and several of them as clones."""

import torch
import torch.nn.functional as F
from resnet import ResNet
from torch import Tensor, nn

BLOCKS = {"resnet18_8x": (2, 2, 2, 2), "resnet34_8x": (3, 4, 6, 3)}


def make_classifier(model: str, width: int, channels: int, num_classes: int) -> nn.Module:
    """A classifier by its name in the configuration."""
    if model in BLOCKS:
        return ResNet(BLOCKS[model], width, channels, num_classes)
    return LeNet5(width, channels, num_classes)


class LeNet5(nn.Module):
    """Images [N, channels, 32, 32] -> logits [N, K]; a width of 6 is LeNet-5, 3 its half."""

    def __init__(self, width: int, channels: int, num_classes: int) -> None:
        super().__init__()
        first, second, third, hidden = (n * width // 6 for n in (6, 16, 120, 84))
        self.conv1 = nn.Conv2d(channels, first, 5)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.conv3 = nn.Conv2d(second, third, 5)
        self.fc1 = nn.Linear(third, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of a batch of images."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.conv3(x)).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


class Clones(nn.ModuleList):
    """Images [N, channels, 32, 32] -> the logits of C classifiers, [C, N, K]."""

    def forward(self, images: Tensor) -> Tensor:
        """The logits of all clones."""
        return torch.stack([clone(images) for clone in self])

    @torch.no_grad()
    def vote(self, images: Tensor) -> Tensor:
        """The classes with the largest sums of softmaxes, [N]."""
        self.eval()
        return self(images).softmax(-1).sum(0).argmax(-1)
