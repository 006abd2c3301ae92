"""A stand-in for PyTorch Lightning 2, as far as examples/lightning_loop.py uses it: for machines without it.

What matters to a meta step behaves as Lightning's: manual optimisation, hooks in their order, an optimizer that is
wrapped in an object of a class of its own, which imitates the optimizer's and counts steps.
"""

from __future__ import annotations

import itertools
import sys
import types

import torch


class LightningOptimizer:
    """Not the optimizer, but of a class that derives from the optimizer's: as Lightning's."""

    def __init__(self, optimizer, trainer):
        self._optimizer, self._trainer = optimizer, trainer
        self.__class__ = type("Lightning" + type(optimizer).__name__, (type(self), type(optimizer)), {})

    def __getattr__(self, name):
        return getattr(self._optimizer, name)

    @property
    def optimizer(self):
        return self._optimizer

    def step(self, closure=None, **kwargs):
        self._optimizer.step(closure=closure or (lambda: None), **kwargs)
        self._trainer.global_step += 1

    # The methods of the class above would look for an optimizer's attributes here.
    def zero_grad(self, set_to_none=True):
        self._optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self):
        return self._optimizer.state_dict()


class LightningModule(torch.nn.Module):
    trainer = None

    def optimizers(self, use_pl_optimizer=True):
        wrapped = self.trainer.optimizer
        return wrapped if use_pl_optimizer else wrapped.optimizer

    def log(self, name, value, prog_bar=False):
        self.trainer.logged.setdefault(name, []).append(float(value))

    def log_dict(self, values, prog_bar=False):
        for name, value in values.items():
            self.log(name, value)

    def on_train_start(self):
        pass


class CombinedLoader:
    def __init__(self, iterables, mode):
        assert mode == "max_size_cycle"
        self.iterables = iterables

    def __iter__(self):
        count = max(len(loader) for loader in self.iterables.values())
        cycled = [itertools.chain.from_iterable(itertools.repeat(loader)) for loader in self.iterables.values()]
        for batches in itertools.islice(zip(*cycled, strict=False), count):
            yield dict(zip(self.iterables, batches, strict=True))


class Trainer:
    def __init__(self, max_epochs, accelerator, logger, enable_checkpointing):
        self.max_epochs, self.global_step, self.logged = max_epochs, 0, {}

    def fit(self, module, train_loader, val_loader):
        assert module.automatic_optimization is False
        module.trainer = self
        self.optimizer = LightningOptimizer(module.configure_optimizers(), self)
        module.train()
        module.on_train_start()
        for _ in range(self.max_epochs):
            for i, batch in enumerate(train_loader):
                module.training_step(batch, i)
            module.eval()
            with torch.no_grad():
                for i, batch in enumerate(val_loader):
                    module.validation_step(batch, i)
            module.train()


def install(monkeypatch):
    """Let ``import lightning`` find the stand-in."""
    root, pytorch, utilities = (types.ModuleType(f"lightning{end}") for end in ("", ".pytorch", ".pytorch.utilities"))
    root.LightningModule, root.Trainer, root.pytorch = LightningModule, Trainer, pytorch
    root.seed_everything = torch.manual_seed
    utilities.CombinedLoader, pytorch.utilities = CombinedLoader, utilities
    for module in (root, pytorch, utilities):
        monkeypatch.setitem(sys.modules, module.__name__, module)
