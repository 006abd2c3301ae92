"""One model trained under one method: a run has one stage for its method and one for each baseline."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta.data import DeviceData, EpochSampler, TrainBatches, derived_seed, load_batch
from fastmeta.functional.finite import all_finite
from fastmeta.functional.network import pick_logits
from fastmeta.methods import METHODS, Batch
from fastmeta.training.config import TrainConfig
from fastmeta.training.encoding import Decoder, Encoder
from fastmeta.training.generators import host_state, seed_all, set_host_state
from fastmeta.training.health import Health, label_rate_to_blame
from fastmeta.training.label_metrics import label_figures
from fastmeta.training.metrics import Accumulator, evaluate, means
from fastmeta.training.modes import looked_at
from fastmeta.training.module_state import ModuleState, Watch, load_state
from fastmeta.training.schedule import lr_at, lr_share

#: steps between two looks at the guards, each of which waits for the device
CHECK_EVERY = 50
#: so many steps in a row that are not finite end a run
MOST_NONFINITE = 10


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to try."""


class Diverged(TrainingError):
    """Steps are no longer finite; other stages may go on."""


class Stage:
    """Model, optimizer, method and position of one stage.

    Args:
        name: the config's method, or noisy, union, clean: fixed labels on these rows.
        config: resolved.
        data: on the device to train on.
        model: freshly initialised and this stage's own; moved to the device here.
    """

    def __init__(self, name: str, config: TrainConfig, data: DeviceData, model: nn.Module) -> None:
        assert config.epochs is not None
        assert config.data.batch_size is not None
        assert config.data.meta_batch_size is not None
        self.name, self.config, self.data = name, config, data
        self.device = data.images.device
        # channels-last is how the images lie, and what tensor cores want; oneDNN prefers the plain order
        on_cuda = self.device.type == "cuda"
        memory_format = torch.channels_last if on_cuda else torch.contiguous_format
        self.model = model.to(device=self.device, memory_format=memory_format)  # type: ignore[call-overload]
        optim = config.optim
        assert optim.lr is not None
        assert optim.weight_decay is not None
        self.optimizer = torch.optim.SGD(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=optim.lr,
            momentum=optim.momentum,
            nesterov=optim.nesterov,
            weight_decay=optim.weight_decay,
        )
        self.first, last = data.rows(name)
        self.sums = Accumulator(self.device)
        self.method = METHODS[config.method if name == config.method else "onehot"](
            self.model,
            self.optimizer,
            data.targets[self.first : last],
            data.num_classes,
            target_prob=config.labels.target_prob,
            label_dtype=getattr(torch, config.labels.dtype),
            label_seed=derived_seed(config.seed, "label-rounding"),
            label_lr=config.labels.label_lr,
            lookahead=config.labels.lookahead_choice,
            tangent=config.labels.tangent,
            transform=TrainBatches(
                data.images,
                data.transform,
                derived_seed(config.seed, "crops"),
                # what the first layer would round its input to under autocast
                dtype=torch.bfloat16 if on_cuda and config.precision == "bf16" else torch.float32,
                memory_format=memory_format,
            ),
            sums=self.sums,
            compile=config.compile,
            approx=config.approx_choice,
            micro_batch=config.micro_batch,
        )
        # the same number of steps for every stage: the schedule is the method's, whatever rows it sees
        self.steps_per_epoch = data.train_size // min(config.data.batch_size, data.train_size)
        self.total = self.steps_per_epoch * config.epochs
        seed, device = config.seed, self.device
        self.sampler = EpochSampler(
            last - self.first, config.data.batch_size, seed=seed, stream="train-order", device=device
        )
        self.meta_sampler = EpochSampler(
            data.meta_size, config.data.meta_batch_size, seed=seed, stream="meta-order", device=device
        )
        self.step = 0
        self.seconds = 0.0
        self.best: tuple[float, int] | None = None  # test accuracy, epoch
        self.last: dict[str, Any] = {}  # what the last end_epoch gave
        self.health = Health()
        self.watch = Watch(self.model)
        seed_all(derived_seed(seed, "random-layers"))

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.step // self.steps_per_epoch

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def take_step(self) -> None:
        """One optimizer step. Nothing waits for the device."""
        lr = lr_at(self.config.optim, self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        index = self.sampler(self.step)
        step = torch.full((), self.step, device=self.device)  # by a fill: a copy from the host would wait
        meta = None
        if self.method.needs_meta:
            rows = self.meta_sampler(self.step) + self.data.train_size
            meta = (rows, step), self.data.targets[rows]
        with self.autocast():
            self.method.step(Batch((index + self.first, step), index, meta))
        self.step += 1

    def check(self) -> None:
        """Raise a TrainingError if the last steps went wrong. Waits for the device."""
        sums = self.sums.read()
        if sums["index_skips"]:
            raise TrainingError(
                f"{self.name}: {sums['index_skips']:.0f} rows of training batches were skipped: they pointed outside "
                "the label table, or at a label row that is not finite; index and labels do not belong together "
                "(FASTMETA_DEBUG=1 stops at the first)"
            )
        if sums["longest_streak"] >= MOST_NONFINITE:
            raise Diverged(
                f"{self.name}: loss or gradient was not finite for {MOST_NONFINITE} steps in a row "
                f"(up to step {self.step}): training has diverged; {self._which_rate()}"
            )

    def finite(self) -> bool:
        """Whether weights, momentum and labels are finite: a rate that is too large overflows in a finite step."""
        params = self._optimized()
        state = [t for p in params for t in self.optimizer.state.get(p, {}).values() if isinstance(t, Tensor)]
        labels = [] if self.method.labels is None else list(self.method.labels.state_dict().values())
        return bool(all_finite([*params, *state, *labels]))

    def _which_rate(self) -> str:
        """The rate to lower, for an error; waits for the device."""
        optim, labels = self.config.optim, self.config.labels
        if self.method.labels is not None and labels.label_lr is not None:
            assert optim.lr is not None
            assert self.config.epochs is not None
            usual = self.method.labels.default_label_lr(optim.lr, self.sampler.batch_size, self.config.epochs)
            if (why := label_rate_to_blame(self.method.labels, labels.label_lr, usual)) is not None:
                return why
        return f"lower optim.lr, now {optim.lr}"

    def sound(self) -> bool:
        """Whether this state is worth keeping: the last step was finite, and the model still is. Waits for the device.

        A finite step may have thrown the weights so far that no further one is: logits tell.
        """
        if self.sums.read()["streak"] or not self.finite():
            return False
        few = torch.arange(min(512, self.data.train_size), device=self.device)
        # as if nobody had looked, because when this is asked goes by the clock
        with looked_at(self.model, self.device), torch.no_grad(), self.autocast():
            logits = pick_logits(self.model(load_batch(self.data.images, few, self.data.transform)))
        return bool(logits.isfinite().all())

    def end_epoch(self) -> tuple[dict[str, Any], list[str]]:
        """Figures of the epoch that just ended, for one line of metrics, and new health warnings."""
        self.check()
        learned = self.method.labels is not None
        sums = self.sums.read()
        record: dict[str, Any] = {
            "run": self.name,
            "epoch": self.epoch,
            "step": self.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "nonfinite_steps": int(sums["nonfinite"]),
            **means(sums, learned=learned),
        }
        self.sums.reset()
        record |= self.figures()
        warnings: list[str] = []
        if record["nonfinite_steps"]:
            warnings.append(f"{record['nonfinite_steps']} steps of epoch {self.epoch} were not finite and were skipped")
        if record.get("test_accuracy") is not None and record["ece"] is None:
            warnings.append(
                f"at the end of epoch {self.epoch} some test images have logits that are not finite: they count as "
                "wrong, and nll and ece are null"
            )
        if self.method.labels is not None:
            warnings += self.health.look(
                self.method.labels,
                self.config.labels.target_prob or 0.0,
                lr_share(self.config.optim, self.step, self.total),
                record["label_grad_norm"],
            )
        accuracy = record.get("test_accuracy")
        if accuracy is not None and (self.best is None or accuracy > self.best[0]):
            self.best = accuracy, self.epoch
        self.last = record
        return record, warnings

    def figures(self) -> dict[str, Any]:
        """Test accuracy, nll, ece and how the labels stand, now."""
        figures: dict[str, Any] = {}
        if self.data.test is not None:
            batch_size = max(512, self.config.data.batch_size or 0)
            images, targets = self.data.test
            figures |= evaluate(
                self.model, images, targets, self.data.transform, batch_size=batch_size, autocast=self.autocast
            )
        if self.method.labels is not None:
            figures |= label_figures(self.method.labels, self.data.y_true)
        return figures

    # -- state --------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that :meth:`load` needs to go on bitwise."""
        module = self.watch.state()
        self._beside = module.values
        state = {f"model.{k}": v for k, v in module.state.items()}
        state |= {f"beside.{k}": v for k, v in module.beside.items()}
        for i, p in enumerate(self._optimized()):
            state |= {f"optimizer.{i}.{k}": v for k, v in self.optimizer.state[p].items() if isinstance(v, Tensor)}
        if self.method.labels is not None:
            state |= {f"labels.{k}": v for k, v in self.method.labels.state_dict().items()}
        state["sums"] = self.sums.values
        host = Encoder()
        self._host = host(host_state())
        state |= {f"host.{k}": v for k, v in host.tensors.items()}
        state["rng.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            state["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def values(self) -> dict[str, Any]:
        """The rest of the state, as JSON holds it, beside what :meth:`tensors` has just given."""
        return {
            "name": self.name,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "last": self.last,
            "warned": self.health.given,
            "method": self.method.state_dict(),
            "model": self._beside,
            "host": self._host,
        }

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on where a stage of the same config gave `tensors` and `values`."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        load_state(self.model, ModuleState(under("model."), under("beside."), values["model"]))
        for i, p in enumerate(self._optimized()):
            for key, value in under(f"optimizer.{i}.").items():
                like = torch.empty_like(p) if value.shape == p.shape else value.to(p.device)
                self.optimizer.state[p][key] = like.copy_(value)
        if self.method.labels is not None:
            self.method.labels.load_state_dict(under("labels."))
        self.sums.values.copy_(tensors["sums"])
        set_host_state(Decoder(under("host."))(values["host"]))
        torch.set_rng_state(tensors["rng.cpu"])
        if self.device.type == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)
        self.step, self.seconds = values["step"], values["seconds"]
        self.best = None if values["best"] is None else (values["best"][0], values["best"][1])
        self.last = values["last"]
        self.health.given = list(values["warned"])
        self.method.load_state_dict(values["method"])

    def _optimized(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]
