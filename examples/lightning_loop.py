"""Learned labels in PyTorch Lightning, by manual optimisation: ``python examples/lightning_loop.py``.

Lightning keeps its loops, loggers and checkpoints. The training step is one call of :class:`fastmeta.MetaStep`, which
takes the optimizer's step itself; therefore ``automatic_optimization = False``. ``Trainer(precision="bf16-mixed")``
works, because that is autocast; "16-mixed" does not, because its gradient scaler wants to call backward itself. This
is for one device: where Lightning wraps the module (DDP), see ``process_group=`` of MetaStep.
"""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, TensorDataset

import fastmeta


class LearnedLabels(L.LightningModule):
    """Trains `model` on samples with the labels `given`, which move so that the clean samples' loss falls."""

    def __init__(self, model: torch.nn.Module, given: torch.Tensor, num_classes: int, lr: float = 0.1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.labels = fastmeta.InstanceLabels(given, num_classes)  # its table is in Lightning's checkpoints
        self.lr = lr
        self.resumed: dict[str, Any] | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=self.lr)  # labels move by a rate of their own

    def on_train_start(self) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        self.step = fastmeta.MetaStep(self.model, self.labels, optimizer, unique_index=True)
        if self.resumed is not None:
            self.step.load_state_dict(self.resumed)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["meta_step"] = self.step.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.resumed = checkpoint["meta_step"]

    def training_step(self, batch: dict[str, list[torch.Tensor]], batch_idx: int) -> None:
        results = []
        # As the closure of Lightning's optimizer, which counts the step for checkpoints and calls hooks. It takes no
        # second step, because a meta step leaves no gradients behind.
        self.optimizers().step(closure=lambda: results.append(self.step(batch["train"], batch["meta"])))
        self.log_dict({"train_loss": results[0].train_loss, "meta_loss": results[0].meta_loss}, prog_bar=True)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("accuracy", (self.model(x).argmax(1) == y).float().mean(), prog_bar=True)


def loaders(x: torch.Tensor, x_meta: torch.Tensor, y_meta: torch.Tensor, batch_size: int) -> CombinedLoader:
    """Train samples with their rows, and clean samples as often as these need: in each step a batch of both."""
    train = DataLoader(TensorDataset(x, torch.arange(len(x))), batch_size, shuffle=True, drop_last=True)
    meta = DataLoader(TensorDataset(x_meta, y_meta), batch_size, shuffle=True)
    return CombinedLoader({"train": train, "meta": meta}, "max_size_cycle")


def main(epochs: int = 20) -> LearnedLabels:
    L.seed_everything(0)
    means = 3 * torch.randn(4, 16)
    y = torch.randint(4, (1200,))
    x = means[y] + torch.randn(1200, 16)
    noisy = torch.where(torch.rand(1000) < 0.4, torch.randint(4, (1000,)), y[:1000])
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    module = LearnedLabels(model, noisy, num_classes=4)
    trainer = L.Trainer(max_epochs=epochs, accelerator="auto", logger=False, enable_checkpointing=False)
    held_out = DataLoader(TensorDataset(x[1100:], y[1100:]), 100)
    trainer.fit(module, loaders(x[:1000], x[1000:1100], y[1000:1100], 100), held_out)
    right = (module.labels.probs().argmax(1).cpu() == y[:1000]).float().mean()
    print(f"labels right: {(noisy == y[:1000]).float().mean():.1%} as given, {right:.1%} learned")
    return module


if __name__ == "__main__":
    main()
