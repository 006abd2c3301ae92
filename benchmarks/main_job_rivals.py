"""What benchmarks/main_job.py holds learned labels against, as methods of `fastmeta train`: softened labels that never
move, and training as given with some steps on the clean rows behind it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, one_hot

from fastmeta import InstanceLabels
from fastmeta.methods import Batch, Context, Method, Outcome, Samples
from fastmeta.methods.fixed_labels import OneHot


class Softened(Method):
    """The given class has probability `target_prob`, the others share the rest, and nothing moves."""

    @dataclass(frozen=True)
    class Config:
        target_prob: float = 0.4

    def setup(self, context: Context) -> None:
        self.network_input, self.model = context.network_input, context.model()
        self.optimizer = context.optimizer(self.model.parameters())
        others = (1 - self.config.target_prob) / (context.num_classes - 1)
        given = one_hot(context.targets, context.num_classes)
        self.targets = others + (self.config.target_prob - others) * given

    def step(self, batch: Batch) -> Outcome:
        logits = self.model(self.network_input(batch.x))
        loss = cross_entropy(logits, self.targets[batch.index])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return Outcome(logits.detach(), loss.detach())

    def predictor(self) -> Any:
        return self.model


class GivenThenFinetuned(OneHot):
    """Trained as given; behind the last epoch `steps` of SGD on all clean rows. Labels are what the network says then.

    The defaults are those of benchmarks/worth_rivals.py.
    """

    @dataclass(frozen=True)
    class Config:
        steps: int = 100
        lr: float = 0.02
        momentum: float = 0.9

    learns_labels = True

    def setup(self, context: Context) -> None:
        # one-hot but for rounding, until the network is read
        super().setup(context)
        self.epochs = context.epochs
        self.labels = InstanceLabels(context.targets, num_classes=context.num_classes, target_prob=0.99)

    def end_epoch(self, samples: Samples) -> None:
        if samples.epoch < self.epochs:
            return
        options, y = self.config, samples.clean_targets
        x = samples.clean_rows(torch.arange(len(y)))
        tuned = copy.deepcopy(self.model).train()
        optimizer = torch.optim.SGD(tuned.parameters(), lr=options.lr, momentum=options.momentum)
        for _ in range(options.steps):
            loss = cross_entropy(tuned(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.model.load_state_dict(tuned.state_dict())
        tuned.eval()
        with torch.no_grad():
            for of_rows, rows in samples.train():
                self.labels.assign_(rows, tuned(of_rows).softmax(1))
