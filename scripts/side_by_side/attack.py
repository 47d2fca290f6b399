"""DisGUIDE (Rosenthal et al., AAAI 2023): the rounds of Algorithm 1."""

from types import SimpleNamespace

import torch
from classifiers import Clones, make_classifier
from generator import Generator
from learn import clone_loss, generator_loss, make_optimizer, make_schedule, step
from replay import Replay
from torch import Tensor
from victim import Victim


class Attack:
    """The generator, the clones, what trains them, and the replay."""

    def __init__(self, config: SimpleNamespace, victim: Victim) -> None:
        self.config, self.victim, self.replay = config, victim, Replay(config.replay.size)
        made, learnt, channels = config.generator, config.clones, victim.channels
        shape = (learnt.width, channels, victim.num_classes)
        self.generator = Generator(made.latent_dim, made.width, channels, made.gray_every)
        self.clones = Clones(
            make_classifier(learnt.model, *shape) for _ in range(config.num_clones)
        )
        self.queries = config.disguide.fresh_batches * config.batch_size  # of a round
        self.rounds = config.query_budget // self.queries
        self.generator_tx = make_optimizer(self.generator, made, made.optimizer)
        self.clones_tx = make_optimizer(self.clones, learnt, "sgd")
        both = self.generator_tx, self.clones_tx
        self.schedules = [make_schedule(tx, config.schedule, self.rounds) for tx in both]

    def play(self, rounds: int) -> None:
        """So many rounds more."""
        for _ in range(rounds):
            self.play_round()

    def play_round(self) -> None:
        """Generator updates, fresh batches, replayed batches."""
        told, steps = self.config, self.config.disguide
        for _ in range(steps.generator_steps):
            self.generator.train()
            self.clones.eval().requires_grad_(False)  # the generator learns, and nothing else
            logits = self.clones(self.generator.draw(told.batch_size))
            step(self.generator_tx, generator_loss(logits, told.generator.diversity_weight))
        self.clones.train().requires_grad_(True)
        for _ in range(steps.fresh_batches):
            with torch.no_grad():
                images = self.generator.eval().draw(told.batch_size)
            answers = self.victim(images)
            self.replay.add(images, answers)
            self.teach(images, answers)
        for _ in range(told.replay.batches):
            self.teach(*self.replay.sample(told.batch_size))
        for schedule in self.schedules:
            schedule.step()

    def teach(self, images: Tensor, answers: Tensor) -> None:
        """One step of all clones on an answered batch."""
        loss = clone_loss(self.clones(images), answers, self.config.clones.soft_loss)
        step(self.clones_tx, loss)
