"""The losses, the gradient step, the optimisers, and the drops of their learning rates."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim


def generator_loss(logits: Tensor, diversity_weight: float) -> Tensor:
    """Equation 1 on [C, N, K]: the clones shall disagree, and name all classes."""
    probs = logits.softmax(-1)
    mean_vote = (probs + 1e-6).mean((0, 1))
    return -probs.std(0).mean() + diversity_weight * (mean_vote * mean_vote.log()).sum()


def clone_loss(logits: Tensor, answers: Tensor, soft_loss: str) -> Tensor:
    """The sum over clones of the loss of [C, N, K] on probabilities [N, K] or labels [N]."""
    targets, loss = answers, F.cross_entropy
    if answers.is_floating_point() and soft_loss == "l1":
        # The victim's logits, as far as its probabilities tell them.
        log_probs = answers.clamp_min(1e-30).log()
        targets, loss = log_probs - log_probs.mean(1, keepdim=True), F.l1_loss
    return torch.stack([loss(clone, targets) for clone in logits]).sum()


def step(optimizer: optim.Optimizer, loss: Tensor) -> None:
    """One update on a loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def make_optimizer(network: nn.Module, told: SimpleNamespace, kind: str) -> optim.Optimizer:
    """Adam or SGD with the learning rate, decay and momentum of a part of the configuration."""
    known = {"lr": told.learning_rate, "weight_decay": told.weight_decay}
    if kind == "adam":
        return optim.Adam(network.parameters(), **known)
    return optim.SGD(network.parameters(), momentum=told.momentum, **known)


def make_schedule(
    optimizer: optim.Optimizer, told: SimpleNamespace, rounds: int
) -> optim.lr_scheduler.MultiStepLR:
    """Scales the learning rate after fractions of all rounds, rounded down to whole blocks."""
    drops = [int(fraction * rounds) for fraction in told.fractions]
    drops = [at - at % told.block_rounds or at for at in drops]  # short runs go by single rounds
    return optim.lr_scheduler.MultiStepLR(optimizer, drops, told.factor)
