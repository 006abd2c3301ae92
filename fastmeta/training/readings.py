"""Labels of a run as they are read: off the table, off the network, or off both; and which reading is handed out.

With p the learned labels of a row, q the network's prediction for it without augmentation, and y its given class,

    reading    distribution               learned class
    table      p                          the likeliest, if it is `labels.margin` times as probable as y; else y
    network    q                          the likeliest
    product    softmax(log p + log q)     the likeliest

The margin goes with a table that was estimated: it is known how far that can be trusted. How far the others can, the
canaries tell.

Which labels may be wrong is another question than what they should be. Whatever is read,

    label quality of a row = sqrt(p_y q_y)

which ranks wrong labels better than either factor does: benchmarks/worth.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastmeta.data import derived_seed
from fastmeta.distributed import Ranks, rows_to_first
from fastmeta.functional.call import call_model, pick_logits
from fastmeta.functional.evaluation import evaluation
from fastmeta.training import global_generators
from fastmeta.training.canaries import figures as of_canaries
from fastmeta.training.config import TrainConfig
from fastmeta.training.label_metrics import Reading, average_precision, changes, learned_labels, read_rows
from fastmeta.training.model_copy import copy_of

if TYPE_CHECKING:
    from fastmeta.training.stage import Stage

READINGS = TABLE, NETWORK, PRODUCT = "table", "network", "product"
#: why the reading that is handed out is that one
ASKED, BY_CANARIES, DEFAULT = "asked", "canaries", "default"
#: what a row without a softmax tells: it keeps its given label, which nobody doubts
_SILENT = 1.0, 1.0, 0.0


@dataclass
class Readings:
    """What :func:`read` gives: (n,) tensors for all rows of the stage, canaries too, by the name of the reading."""

    of: dict[str, Reading]
    chosen: str = TABLE
    by: str = DEFAULT
    network: str | None = None  # which one was read: finetuned or model
    quality: Tensor | None = None  # (n,) of learned labels: how far to believe the given one
    told: dict[str, dict[str, Any]] = field(default_factory=dict)  # what the choosing canaries say of each

    def figures(self, stage: Stage) -> dict[str, dict[str, Any]]:
        """Of each reading, on the training rows alone, and what the reporting canaries say of it."""
        (given, y_true), found = stage.data.of_all(), {}
        size = len(given)
        for name, reading in self.of.items():
            found[name] = changes(given, reading["learned"][:size], y_true)
            precision = average_precision(reading["given_probability"][:size], given, y_true)
            found[name]["wrong_label_average_precision"] = precision
            if stage.kept is not None:
                found[name]["right_by_canaries"] = stage.kept.fate(reading["learned"]).after
        return found

    def on_first(self, ranks: Ranks) -> Readings:
        """Of all rows on rank 0, on the host; on the others no row. A process by itself has what it has."""
        if ranks.size == 1:
            return self
        of = {name: {k: rows_to_first(t, ranks) for k, t in reading.items()} for name, reading in self.of.items()}
        quality = None if self.quality is None else rows_to_first(self.quality, ranks)
        return replace(self, of=of if ranks.first else {}, quality=quality)

    def summary(self, stage: Stage) -> dict[str, Any] | None:
        """As summary.json has it under `reading`; None where there is the table alone."""
        if self.network is None:
            return None
        readings = self.figures(stage)
        for name, figures in readings.items():
            if stage.kept is not None:
                told = of_canaries(stage.kept.canaries, stage.kept.fate(self.of[name]["learned"]))
                figures |= {key: told[key] for key in ("put_right", "spoiled")}
            figures |= self.told.get(name, {})
        return {"chosen": self.chosen, "by": self.by, "network": self.network, "readings": readings}


def looks_at_network(config: TrainConfig) -> bool:
    """Whether the labels of the method's own stage are read off a network as well; resolved."""
    return config.method_class().learns_labels and (
        config.labels.read in (NETWORK, PRODUCT) or (config.labels.read == "auto" and config.labels.canaries != "off")
    )


def look_steps(stage: Stage) -> float:
    """What one look at the training rows costs, in plain steps on a batch: a third of such a step a row."""
    return stage.data.train_size / (3 * stage.sampler.batch_size)


def reading_steps(stage: Stage) -> float:
    """The same of a stage that learns labels, whose own network is looked at in the end; 0 of all others.

    A look at a copy that was fine-tuned is that one's cost.
    """
    config = stage.config
    alone = stage.name == config.method and not config.finetune_steps and config.method_class().learns_labels
    return look_steps(stage) if alone else 0.0


def read(stage: Stage, model: nn.Module | None, stopped: Callable[[], bool] = lambda: False) -> Readings | None:
    """Labels of a stage at its end, and the reading that is handed out; None if `stopped`.

    Nothing of the stage moves but its labels to those that its canaries keep, and no random generator.

    Args:
        model: a copy of the stage's model that was fine-tuned; None reads the stage's own, where one is read at all.
    """
    labels = stage.method.labels
    if stage.kept is not None:
        stage.kept.put_back()
    found = Readings({} if labels is None else {TABLE: learned_labels(labels)})
    if model is not None or labels is not None:
        with global_generators.kept():
            global_generators.seed_all(derived_seed(stage.config.seed, "readings"))
            parts: dict[str, list[Reading]] = {}
            for each in _by_network(stage, copy_of(stage.model) if model is None else model):
                if stopped():
                    return None
                for name, reading in each.items():
                    parts.setdefault(name, []).append(reading)
        whole = {name: {k: torch.cat([p[k] for p in some]) for k in some[0]} for name, some in parts.items()}
        if PRODUCT in whole:
            found.quality = whole[PRODUCT].pop("quality")
        if model is not None or looks_at_network(stage.config):
            found.of |= whole
            found.network = "model" if model is None else "finetuned"
    wanted = stage.config.labels.read
    if labels is not None and wanted != "auto":
        found.chosen, found.by = wanted, ASKED
    elif stage.kept is not None and len(found.of) > 1:
        classes = {name: reading["learned"] for name, reading in found.of.items()}
        found.chosen, found.told = stage.kept.choose(classes)
        found.by = BY_CANARIES
    return found.on_first(stage.ranks)


def _by_network(stage: Stage, model: nn.Module) -> Iterator[dict[str, Reading]]:
    """Of a chunk of rows after another; rows follow each other."""
    labels, given = stage.method.labels, stage.context.targets
    with torch.no_grad(), evaluation(model):
        for x, rows in stage.samples().train():
            with stage.autocast():
                logits = pick_logits(call_model(model, x))
            log_q, y = logits.double().log_softmax(1), given[rows]
            found = {NETWORK: _read(log_q, y)}
            if labels is not None:
                log_p = labels.probs(rows).double().log()
                found[PRODUCT] = _read((log_p + log_q).log_softmax(1), y)
                of_given = torch.stack([log_p, log_q.nan_to_num(nan=0.0)]).gather(2, y[None, :, None].expand(2, -1, 1))
                found[PRODUCT]["quality"] = of_given.mean(0).exp().squeeze(1)
            yield found


def _read(log_probs: Tensor, given: Tensor) -> Reading:
    reading = read_rows(log_probs.exp(), given, 1.0)
    silent = log_probs.isnan().any(1)
    reading["learned"] = torch.where(silent, given, reading["learned"])
    for name, value in zip(("probability", "given_probability", "entropy"), _SILENT, strict=True):
        reading[name] = torch.where(silent, value, reading[name])
    return reading


def in_words(told: Mapping[str, Any]) -> str:
    """A summary's `reading`: labels are read off the product, chosen by canaries (table 80.1% right, product 83.0%)."""
    name = {NETWORK: "fine-tuned network" if told["network"] == "finetuned" else NETWORK}
    line = f"labels are read off the {name.get(told['chosen'], told['chosen'])}"
    if told["by"] == ASKED:
        return f"{line}, as asked"
    if told["by"] != BY_CANARIES:
        return line
    right = [f"{way} {100 * r['right_by_canaries']:.1f}%" for way, r in told["readings"].items()]
    return f"{line}, which canaries choose; right by those that report: {', '.join(right)}"
