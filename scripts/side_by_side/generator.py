"""The generator of DFME, which DisGUIDE uses, and the gray ones among its images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Generator(nn.Module):
    """Latent vectors [N, Z] -> images [N, channels, 32, 32] in [-1, 1]."""

    def __init__(self, latent_dim: int, width: int, channels: int, gray_every: int) -> None:
        super().__init__()
        self.latent_dim, self.gray_every, wide = latent_dim, gray_every, 2 * width
        self.l1 = nn.Sequential(nn.Linear(latent_dim, wide * 8 * 8))
        self.conv_blocks0 = nn.Sequential(nn.BatchNorm2d(wide))
        self.conv_blocks1 = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.LeakyReLU(0.2)
        )
        self.conv_blocks2 = nn.Sequential(
            *(nn.Conv2d(wide, width, 3, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(width, channels, 3, padding=1), nn.BatchNorm2d(channels, affine=False)),
        )

    def forward(self, z: Tensor) -> Tensor:
        """The images of these latent vectors."""
        x = self.conv_blocks0(self.l1(z).unflatten(1, (-1, 8, 8)))
        x = self.conv_blocks1(F.interpolate(x, scale_factor=2))
        return torch.tanh(self.conv_blocks2(F.interpolate(x, scale_factor=2)))

    def draw(self, num: int) -> Tensor:
        """New images, some of them gray."""
        return to_gray(self(torch.randn(num, self.latent_dim)), self.gray_every)


def to_gray(images: Tensor, every: int) -> Tensor:
    """Gives images 0, `every`, ... one channel in place of all; only it passes a gradient."""
    channels = images.shape[1]
    if not every or channels == 1:
        return images
    kept = int(torch.randint(channels, ()))
    images = images.clone()
    for other in set(range(channels)) - {kept}:
        images[::every, other] = images[::every, kept].detach()
    return images
