"""Experience replay: the answered queries, the oldest of which make room for new ones."""

import torch
from torch import Tensor


class Replay:
    """A circular buffer of images [R, channels, 32, 32] and the answers to them."""

    def __init__(self, size: int) -> None:
        self.size, self.head, self.filled = size, 0, 0
        self.images, self.answers = torch.empty(0), torch.empty(0)

    def add(self, images: Tensor, answers: Tensor) -> None:
        """Writes a batch over the oldest entries."""
        if not self.filled:
            self.images = images.new_empty((self.size, *images.shape[1:]))
            self.answers = answers.new_empty((self.size, *answers.shape[1:]))
        slots = torch.arange(self.head, self.head + len(images)) % self.size
        self.images[slots], self.answers[slots] = images, answers
        self.head = (self.head + len(images)) % self.size
        self.filled = min(self.filled + len(images), self.size)

    def sample(self, num: int) -> tuple[Tensor, Tensor]:
        """Different entries, all equally likely."""
        slots = torch.randperm(self.filled)[:num]
        return self.images[slots], self.answers[slots]
