"""One model trained under one method: a run has one stage for its method and one for each baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta._text import reason, shown
from fastmeta.data import PILOT, EpochSampler, InputError, Pool, derived_seed
from fastmeta.functional.call import call_model, pick_logits
from fastmeta.functional.finite import all_finite
from fastmeta.losses import Labels, TableError
from fastmeta.meta import OutOfMemory
from fastmeta.methods import METHODS, Method
from fastmeta.training import global_generators, regroup
from fastmeta.training.batches import Batches, steps_per_epoch
from fastmeta.training.best import Best
from fastmeta.training.canaries import Canaries
from fastmeta.training.config import BASELINES, TrainConfig
from fastmeta.training.context import StageContext
from fastmeta.training.device import placed
from fastmeta.training.distances import Distances
from fastmeta.training.health import Health, rate_to_lower
from fastmeta.training.kept_labels import KeptLabels
from fastmeta.training.mean_model import MeanModel
from fastmeta.training.measuring import figures, tested
from fastmeta.training.metrics import means, not_finite, own_figures
from fastmeta.training.modes import looked_at
from fastmeta.training.module_state import Watch
from fastmeta.training.parts import Parts
from fastmeta.training.pilot import pilot_epochs
from fastmeta.training.rank_buffers import average_buffers
from fastmeta.training.recorder import Recorder
from fastmeta.training.samples import PoolSamples
from fastmeta.training.schedule import lr_at, moved_share, stepped_share

#: steps between two looks at the guards, each of which waits for the device
CHECK_EVERY = 50
#: so many steps in a row that are not finite end a run
MOST_NONFINITE = 10


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to try."""


class Diverged(TrainingError):
    """Steps are no longer finite; other stages may go on."""


class Stage:
    """Method and position of one stage.

    Args:
        name: the config's method, or a trial of it; or noisy, union, clean: fixed labels on these rows.
        config: resolved.
        data: on the device to train on.
        build: makes a freshly initialised network by its name, this stage's own.
        canaries: of the method's own stage and of trials, where there are any.
    """

    def __init__(
        self,
        name: str,
        config: TrainConfig,
        data: Pool,
        build: Callable[[str], nn.Module],
        canaries: Canaries | None = None,
    ) -> None:
        assert config.data.batch_size is not None
        self.name, self.config, self.data = name, config, data
        self.device = data.device

        self.ranks = data.ranks
        self.batches = Batches(name, config, data)
        self.sampler, self.meta_sampler = self.batches.sampler, self.batches.meta_sampler
        # the same number of steps for every stage: the schedule is the method's, whatever rows it sees
        self.steps_per_epoch = steps_per_epoch(data.in_all, config.data.batch_size, data.ranks)
        #: steps that the schedule of the learning rate reaches over
        epochs, most = self.steps_per_epoch * (config.epochs or 0), config.max_steps
        self.horizon = epochs if most is None else min(epochs, most)
        self.warmup = self.steps_per_epoch * (config.optim.warmup or 0)
        pilot = self.steps_per_epoch * pilot_epochs(config)
        self.total = min(pilot, self.horizon) if name == PILOT else self.horizon
        self.method = self._method()
        self.context = StageContext(
            config,
            data.given(name, None if canaries is None else canaries.given),
            data.num_classes,
            noise_rate=None if config.noise == "none" else data.wrong_share,
            batch_size=self.sampler.batch_size,
            steps_per_epoch=self.steps_per_epoch,
            steps=self.horizon,
            source=data.source,
            splits=data.splits,
            build=build,
            place=partial(placed, device=self.device),
            fixed_samples=self._fixed_samples,
            ranks=self.ranks,
        )
        self.totals = self.context.totals
        self.mean: MeanModel | None = None  # of the weights, where the config wants one
        self.step = 0
        self._setup()
        self.coming = self.batches.tell(self.method.labels, self.total)
        self.kept = None if canaries is None else KeptLabels(self.method.labels, canaries, config.epochs or 0)
        self.seconds = 0.0
        self.best = Best()
        watched = config.watch_choice is not None and name not in (PILOT, *BASELINES)
        self.distances = Distances(self.device) if watched else None
        self.last: dict[str, Any] = {}  # what the last end_epoch gave
        self.health = Health()
        self.recorder = Recorder.of(self)
        # each rank draws its own
        global_generators.seed_all(derived_seed(config.seed, "random-layers", self.ranks.rank))

    def _method(self) -> Method:
        if self.name in (PILOT, *BASELINES):
            return METHODS["onehot"]()
        try:
            return self.config.method_class()(self.config.options)
        except InputError:
            raise
        except Exception as error:  # of a class of the user's
            raise InputError(f"method {self.config.method} cannot be made: {reason(error)}") from error

    def _setup(self) -> None:
        """The method's models and optimizers, and what of them is saved; InputError for a method that cannot begin."""
        try:
            self.method.setup(self.context)
            self.model = self.method.predictor()
            named = dict(self.method.stateful())
            if self.config.ema is not None:
                self.mean = MeanModel(self.model, self.config.ema)
        except (InputError, OutOfMemory):
            raise
        except Exception as error:
            if self.config.method in METHODS or self.name in (PILOT, *BASELINES):
                raise
            raise InputError(f"method {self.config.method} fails in its setup: {reason(error)}") from error
        if not isinstance(self.model, nn.Module):
            raise InputError(f"method {self.name}: predictor() must return a torch.nn.Module, got {shown(self.model)}")
        if self.method.learns_labels and not isinstance(self.method.labels, nn.Module):
            raise InputError(f"method {self.name} learns labels and has none in self.labels behind its setup")
        made = self.context.parts()
        for name in named:
            if name in made and named[name] is not made[name]:
                raise InputError(
                    f"method {self.name}: stateful() gives {name!r} to something else than the context did"
                )
        if self.method.labels is not None and not any(v is self.method.labels for v in named.values()):
            named["labels"] = self.method.labels
        if self.mean is not None:
            self.model = named["ema"] = self.mean.model
        if not any(self.model is v for v in (*made.values(), *named.values())):
            named["predictor"] = self.model
        self.parts = Parts({**made, **named})
        self.result = Watch(self.model)  # what training will have moved of the run's model

    def close(self) -> None:
        """No more steps are taken: what reads samples ahead ends, and with it its hold on the run's directory."""
        self.batches.close()

    @property
    def epoch(self) -> int:
        """Epochs done: whole ones, and a last one that is cut short."""
        whole, begun = divmod(self.step, self.steps_per_epoch)
        return whole + (begun > 0 and self.step == self.total)

    @property
    def ends_epoch(self) -> bool:
        """Whether the last step was the last one of an epoch."""
        return self.step % self.steps_per_epoch == 0 or self.step == self.total

    @property
    def progress(self) -> float:
        """Share (0, 1] of the way that labels go in a run, which is in proportion to the rate of what moves them."""
        if self.config.labels.update == "epoch":
            return moved_share(self.config.optim, self.config.labels, self.epoch, self.config.epochs or 1)
        first = self.config.labels.plain_epochs * self.steps_per_epoch
        return stepped_share(self.config.optim, self.config.labels, first, self.step, self.total, self.warmup)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def take_step(self) -> None:
        """One optimizer step, or those of an epoch that go together, past the last too. Nothing waits for a device."""
        lr = lr_at(self.config.optim, self.step, self.horizon, self.warmup)
        for optimizer in self.context.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr
        left = max(1, min(self.steps_per_epoch - self.step % self.steps_per_epoch, self.total - self.step))
        coming = range(self.step, self.step + min(self.method.steps_together, left))
        batches = [self.batches(step, self.total, lambda: self.method.uses_meta_batch) for step in coming]
        with self.autocast():
            outcome = self.method.step(batches[0]) if len(coming) == 1 else self.method.several_steps(batches)
        self.coming.ahead()
        if not outcome.counted:
            self.totals.add(outcome, self.context.targets[torch.cat([batch.index for batch in batches])])
        if outcome.distance is not None and self.distances is not None:
            self.distances.add(outcome.distance)
        if self.mean is not None:
            self.mean.follow(self.step, outcome.train_loss.isfinite() if outcome.finite is None else outcome.finite)
        if self.recorder is not None:
            self.recorder.step(len(coming))
        self.step += len(coming)
        self.batches.ahead()

    def check(self) -> None:
        """Raise a TrainingError if the last steps went wrong. Waits for the device."""
        sums = self.totals.read()
        if sums["index_skips"]:
            raise TrainingError(
                f"{self.name}: {sums['index_skips']:.0f} rows of training batches were skipped: they pointed outside "
                "the label table, or at a label row that is not finite; index and labels do not belong together "
                "(FASTMETA_DEBUG=1 stops at the first)"
            )
        if sums["longest_streak"] >= MOST_NONFINITE:
            size = self.sampler.batch_size * self.ranks.size
            raise Diverged(
                f"{self.name}: loss or gradient was not finite for {MOST_NONFINITE} steps in a row "
                f"(up to step {self.step}): training has diverged; "
                + self.ranks.told(rate_to_lower(self.config, self.method.labels, size))
            )

    def finite(self) -> bool:
        """Whether weights, momentum and labels are finite: a rate that is too large overflows in a finite step."""
        return self.ranks.everywhere(self._finite())

    def _finite(self) -> bool:
        state: list[Tensor] = []
        for optimizer in self.context.optimizers.values():
            for p in (p for group in optimizer.param_groups for p in group["params"]):
                state += [p, *(t for t in optimizer.state.get(p, {}).values() if isinstance(t, Tensor))]
        labels = self.method.labels
        if isinstance(labels, Labels):
            return bool(all_finite([*self.model.parameters(), *state])) and labels.finite()
        own = [] if labels is None else [t for t in labels.state_dict().values() if isinstance(t, Tensor)]
        return bool(all_finite([*self.model.parameters(), *state, *own]))

    def sound(self) -> bool:
        """Whether this state is worth keeping: the last step was finite, and the model still is. Waits for the device.

        A finite step may have thrown the weights so far that no further one is: logits tell.
        """
        if self.totals.read()["streak"] or not self.finite():
            return False
        few = self.data.few(min(512, self.data.train_size))
        # as if nobody had looked, because when this is asked goes by the clock
        with looked_at(self.model, self.device), torch.no_grad(), self.autocast():
            logits = pick_logits(call_model(self.model, few))
        return self.ranks.everywhere(bool(logits.isfinite().all()))

    def start(self) -> dict[str, Any]:
        """Figures before the first step, for the first line of metrics."""
        return {"run": self.name, "epoch": 0, "step": 0, **figures(self)}

    def end_epoch(self) -> tuple[dict[str, Any], list[str]]:
        """Figures of the epoch that just ended, for one line of metrics, and new health warnings."""
        self.check()
        average_buffers([*self.context.models.values(), self.model], self.ranks)
        with self.autocast():
            self.method.end_epoch(self.samples())
        sums = self.totals.read()
        record: dict[str, Any] = {
            "run": self.name,
            "epoch": self.epoch,
            "step": self.step,
            "lr": lr_at(self.config.optim, self.step - 1, self.horizon, self.warmup),
            "nonfinite_steps": int(sums["nonfinite"]),
            **means(sums, meta=self.method.uses_meta_batch, learned=self.method.learns_labels),
        }
        if self.distances is not None:
            record |= self.distances.end_epoch()
        self.totals.reset()
        record |= figures(self)
        if self.kept is not None:
            record |= self.kept.look(self.epoch)
            if self.kept.stopped_at == self.epoch:
                self._hold_labels()
        own = own_figures(self.name, self.method.figures())
        if self.mean is not None and self.data.test is not None:
            own["test_accuracy_without_ema"] = tested(self, self.mean.source)["test_accuracy"]
        if own:
            record["method_figures"] = own
        warnings, self.method.warnings[:] = list(self.method.warnings), []
        warnings += not_finite(record)
        moving = self.config.labels.update in ("exact", "epoch") and not self.config.labels.reset
        if isinstance(self.method.labels, Labels) and moving:
            warnings += self.health.look(
                self.method.labels,
                self.config.labels.target_prob or 0.0,
                self.progress,
                record["label_grad_norm"],
                self.config.labels.rate_name,
            )
        self.best.look(record, self.epoch)
        self.last = record
        return record, warnings

    def samples(self) -> PoolSamples:
        """As they are measured, for what a method does at the end of the epoch that has just ended."""
        device = torch.device("cpu") if self.data.source.rows_on_host else self.device
        count = self.config.data.meta_batch_size or 1
        order = EpochSampler(self.data.meta_size, count, seed=self.config.seed, stream="clean-order", device=device)
        return PoolSamples(
            self.data,
            self.name,
            epoch=self.epoch,
            chunk=max(256, 2 * self.sampler.batch_size),  # without a graph they take little memory
            clean_order=order,
        )

    def _fixed_samples(self) -> Iterator[tuple[Any, Tensor]] | None:
        of, augment = self.data.source.options, self.config.data.augment
        # a source of the user's may draw anew in each step
        fixed = augment == "none" if "augment" in of else "standardise" in of
        return self.samples().train() if fixed else None

    def _hold_labels(self) -> None:
        self.method.hold_labels()
        self.close()  # other batches will come

    # -- state --------------------------------------------------------------------------------------------

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Every tensor that :meth:`load` needs to go on bitwise, and the rest as JSON holds it."""
        tensors, parts = self.parts.save()
        tensors = {f"parts/{k}": v for k, v in tensors.items()}
        tensors["totals"] = self.totals.values
        if self.distances is not None:
            tensors["distances"] = self.distances.values
        beside: dict[str, Any] = {"kept": None, "trajectory": None}
        for name, part in (("kept", self.kept), ("trajectory", self.recorder)):
            if part is not None:
                held, beside[name] = part.save()
                tensors |= {f"{name}/{k}": v for k, v in held.items()}
        if self.ranks.size > 1:
            beside["steps_per_epoch"] = self.steps_per_epoch
        drawn, host = global_generators.save(self.device)
        return tensors | drawn, {
            "name": self.name,
            "step": self.step,
            "seconds": self.seconds,
            **self.best.state(),
            "last": self.last,
            "warned": self.health.given,
            "parts": parts,
            "teachers": self.context.teachers,
            **beside,
            "host": host,
        }

    def by_row(self, values: Mapping[str, Any]) -> frozenset[str]:
        """Names of those tensors of :meth:`save`, beside `values`, that have a row for each training sample."""
        return frozenset(f"parts/{name}" for name in self.parts.by_row(values["parts"]))

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any], run: Path, saved_by: int = 1) -> None:
        """Go on where a stage of the same config gave `tensors` and `values`, in the directory `run`.

        Of another number of ranks, `saved_by`, it goes on with the same models and labels, and with other draws.
        """
        if saved_by != self.ranks.size:
            tensors = regroup.state_of(self, tensors, values, saved_by)

        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        own = self.context.teachers  # in the order in which the method asks for them, wherever they lie now
        if list(values["teachers"].values()) != list(own.values()):
            raise InputError(f"the teacher {', '.join(own)} is not the one that the run began with; bring that back")
        try:
            self.parts.load(under("parts/"), values["parts"])
        except TableError as error:
            raise InputError(error) from error
        self.totals.values.copy_(tensors["totals"])
        if self.distances is not None and "distances" in tensors:  # which an older run had not
            self.distances.values.copy_(tensors["distances"])
        kept = values["kept"]
        if (self.kept is None) != (kept is None):
            raise ValueError("canaries belong to the run or to its state, and not to both")
        if self.kept is not None:
            self.kept.load(under("kept/"), kept)
            if self.kept.stopped_at is not None:
                self._hold_labels()
        if self.recorder is not None:
            self.recorder.load(under("trajectory/"), values["trajectory"], run)
        global_generators.load(tensors, values["host"], self.device)
        self.step, self.seconds = values["step"], values["seconds"]
        self.best = Best.of_state(values)
        self.last = values["last"]
        self.health.given = list(values["warned"])
        if saved_by != self.ranks.size:
            regroup.go_on(self, values, saved_by)
