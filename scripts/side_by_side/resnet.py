"""The ResNets for CIFAR: a 3x3 stem without pooling, basic blocks, average pool, linear."""

import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Conv2d, nn.Module]:
    """A convolution without bias, drawn as the authors draw it, and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(outputs)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(inputs, outputs, 3, stride)
        self.conv2, self.bn2 = conv_norm(outputs, outputs, 3, 1)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(*conv_norm(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Features in, features out."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Images [N, channels, 32, 32] -> logits [N, K]."""

    def __init__(
        self, blocks: tuple[int, ...], width: int, channels: int, num_classes: int
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(channels, width, 3, 1)
        self.layer1 = stage(width, width, 1, blocks[0])
        self.layer2 = stage(width, 2 * width, 2, blocks[1])
        self.layer3 = stage(2 * width, 4 * width, 2, blocks[2])
        self.layer4 = stage(4 * width, 8 * width, 2, blocks[3])
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of a batch of images."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


def stage(inputs: int, outputs: int, stride: int, num_blocks: int) -> nn.Sequential:
    """Basic blocks, of which the first changes the shape."""
    first = Block(inputs, outputs, stride)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(num_blocks - 1)))
