"""summary.json: what it holds, what it must look like, and its digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmeta.data import Splits
from fastmeta.data.dataset import MOST_CLASSES
from fastmeta.training.config import TrainConfig
from fastmeta.training.readings import READINGS
from fastmeta.training.rundir.files import new_digest, read_schema, to_json
from fastmeta.training.rundir.layout import result_files
from fastmeta.training.rundir.schema import (
    anything,
    each,
    maybe,
    number,
    one_of,
    real,
    record,
    table,
    text,
    truth,
    whole,
)

if TYPE_CHECKING:
    from fastmeta.training.distances import Distances
    from fastmeta.training.stage import Stage

SCHEMA = "fastmeta.run"
SCHEMA_VERSION = 2


def stage_summary(stage: Stage) -> dict[str, Any]:
    """Figures of a stage that has taken its last step."""
    record = stage.last
    return {
        **stage.best.summary(record),
        "nll": record.get("nll"),
        "ece": record.get("ece"),
        "train_fit": record.get("train_fit"),
        **({"method_figures": record["method_figures"]} if "method_figures" in record else {}),
        **({} if stage.distances is None else {"distance": _distance(stage, stage.distances)}),
        "seconds": stage.seconds,
        "failed": None,
    }


def _distance(stage: Stage, distances: Distances) -> dict[str, Any]:
    approx = stage.config.approx_choice or "difference"
    return {"approx": approx, "every": stage.config.watch_choice, **distances.of_run()}


def failed_summary(stage: Stage, reason: str) -> dict[str, Any]:
    """The same of a baseline that could not take its last step: no figures, and why."""
    return dict.fromkeys(stage_summary(stage)) | {"seconds": stage.seconds, "failed": reason}


def summary_of(
    config: TrainConfig,
    splits: Splits,
    main: Mapping[str, Any],
    labels: Mapping[str, Any],
    baselines: Mapping[str, Any],
    searched: Mapping[str, Any] | None = None,
    **environment: Any,
) -> dict[str, Any]:
    """summary.json. Accuracies and rates lie in [0, 1]; what nobody can know is null.

    schema, schema_version          "fastmeta.run", raised when a field changes its meaning
    test_accuracy_last, _best       after the last epoch; the best epoch is picked on the test set itself
    val_accuracy_last, _best        the same on the validation set, with data.val_fraction
    test_accuracy_at_best_val       after the epoch that the validation set picks
    val_size, overlap               rows of the validation set; training rows that stand in it or in the clean set, null
                                    where nobody looked
    nll, ece                        on the test set after the last epoch
    label_accuracy_initial, _final  share of given and of learned labels, as they are read, that are right
    labels_changed                  learned class differs from the given one
    labels_corrected, _spoiled      wrong labels put right, right ones made wrong
    wrong_label_average_precision   of 1 - p[given] as a finder of wrong given labels, p as labels are read
    canaries                        null without; put_right and spoiled: rate, 95% interval low to high, and number of
                                    rows, those that report; count of all; origin of their given labels (before, drawn);
                                    wrong_rate, right_before, right_after of the training set as they tell it;
                                    kept_epoch, whose labels are kept; stopped_at, or null where labels never stopped
    reading                         null where labels were read off their table alone; chosen: table, network or
                                    product, by: canaries, asked or default, network: finetuned or model; of each of the
                                    readings its figures, right_by_canaries, put_right and spoiled by the canaries that
                                    report, right_by_choosing and chance by the others, see `Canaries.choose`
    search                          of a run that has searched: budget and cost of all trials, in runs; epochs of a
                                    trial; candidates: name of the trial ("none" needs none), settings, cost, failed
                                    (why, or null), right_by_choosing and chance by the canaries that choose, and
                                    against, the best one before, which they compare with; chosen: a name
    labels_withheld                 whether labels are handed out as given, because canaries say that they are worse
    input_shape                     of one sample as the network takes it; null where that is no tensor
    noise_rate                      share of wrong given labels
    noise_matrix                    rows of true classes: shares that say each class, to four digits, zeros where no row
                                    is of it; null of more than 100 classes
    seconds                         training and evaluation of the method's own stage
    failed                          null; in a baseline that diverged why, and its figures are null
    baselines.NAME.*                the stage figures of noisy, union and clean
    label_update                    exact, epoch, posterior or none: how learned labels move; null of fixed labels
    label_lr, label_step            of exact steps: the rate of labels, or how far a visit moves them; null without
    lookahead                       sgd or optimizer, at their scheduled rates, or a fixed rate; null without look-ahead
    uses_meta_batch, learns_labels  what the method does
    uses_clean                      whether it looks at the clean set, in its steps or between epochs
    distance                        of inexact steps from exact ones: approx, every, looks; means of cosine, length and
                                    error over these, and the least cosine, null without looks: see
                                    :mod:`fastmeta.meta.distance`
    method_figures                  what the method has measured of itself at the end
    finetuned                       with finetune_steps: test_accuracy, nll, ece of the copy, and in `labels` what
                                    labels are by `network`, `product` and `table`, see :func:`finetune`; in baselines
                                    too
    ranks                           how many trained it together, where these were several
    files                           sizes and digests of the files that the run has written
    digest                          of all of this but the seconds: equal runs have equal ones
    """
    method, shape = config.method_class(), splits.train.source.input_shape
    summary = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "dataset": config.dataset,
        "noise": splits.noise,
        "noise_rate": splits.noise_rate,
        "noise_matrix": splits.noise_matrix,
        "method": config.method,
        "uses_meta_batch": method.uses_meta_batch,
        "learns_labels": method.learns_labels,
        "uses_clean": method.uses_clean(config.options),
        "model": config.model,
        "epochs": config.epochs,
        "seed": config.seed,
        "optimizer": config.optim.name,
        "lookahead": config.labels.lookahead if method.uses_meta_batch else None,
        "label_update": config.labels.update if method.learns_labels else None,
        "label_lr": config.labels.rate,
        "label_step": config.labels.label_step,
        "train_size": len(splits.train),
        "meta_size": len(splits.meta),
        "test_size": None if splits.test is None else len(splits.test),
        **({} if splits.val is None else {"val_size": len(splits.val)}),
        "overlap": splits.overlap,
        "num_classes": splits.num_classes,
        "class_names": list(splits.class_names),
        "input_shape": None if shape is None else list(shape),
        **main,
        **labels,
        "baselines": dict(baselines),
        **({} if searched is None else {"search": dict(searched)}),
        **environment,
    }
    return summary | {"digest": summary_digest(json.loads(to_json(summary)))}


_RATE = maybe(number(0, 1))
_STAGE = {
    "test_accuracy_last": _RATE,
    "test_accuracy_best": _RATE,
    "test_accuracy_best_epoch": maybe(whole()),
    "nll": maybe(number(0)),
    "ece": _RATE,
    "train_fit": _RATE,
    "seconds": number(0),
}
_SHARE = record({"rate": _RATE, "low": number(0, 1), "high": number(0, 1), "rows": whole()})
_READING = record(
    {
        "label_accuracy": _RATE,
        "labels_changed": whole(),
        "labels_corrected": maybe(whole()),
        "labels_spoiled": maybe(whole()),
        "wrong_label_average_precision": _RATE,
    },
    {
        "right_by_canaries": number(0, 1),
        "put_right": _SHARE,
        "spoiled": _SHARE,
        "right_by_choosing": number(0, 1),
        "chance": _RATE,
    },
)
_FINETUNED = record(
    {
        "steps": whole(1),
        "lr": number(0),
        "test_accuracy": _RATE,
        "nll": maybe(number(0)),
        "ece": _RATE,
        "labels": record({}, dict.fromkeys(READINGS, _READING)),
        "failed": maybe(text),
        "seconds": number(0),
    }
)
_DISTANCE = record(
    {
        "approx": text,
        "every": whole(1),
        "looks": whole(),
        **dict.fromkeys(("cosine", "least"), maybe(real)),
        **dict.fromkeys(("length", "error"), maybe(number(0))),
    }
)
_BESIDE = {
    "distance": _DISTANCE,
    "failed": maybe(text),
    "method_figures": table(maybe(real)),
    "finetuned": _FINETUNED,
    **dict.fromkeys(("val_accuracy_last", "val_accuracy_best", "test_accuracy_at_best_val"), _RATE),
    "val_accuracy_best_epoch": maybe(whole()),
}
_LABELS = {
    "label_accuracy_initial": _RATE,
    "label_accuracy_final": _RATE,
    "labels_changed": whole(),
    "labels_corrected": maybe(whole()),
    "labels_spoiled": maybe(whole()),
    "wrong_label_average_precision": _RATE,
    "label_flips": each(record({"given": whole(), "learned": whole(), "count": whole(1)})),
}
_OF_LABELS = {
    "reading": maybe(
        record(
            {
                "chosen": one_of(*READINGS),
                "by": text,
                "network": maybe(text),
                "readings": record({}, dict.fromkeys(READINGS, _READING)),
            }
        )
    ),
    "canaries": maybe(
        record(
            {
                "origin": text,
                "count": whole(1),
                "kept_epoch": whole(),
                "stopped_at": maybe(whole()),
                "put_right": _SHARE,
                "spoiled": _SHARE,
                **dict.fromkeys(("wrong_rate", "right_before", "right_after"), number(0, 1)),
            }
        )
    ),
    "labels_withheld": truth,
}
_SETTINGS = record({}, dict.fromkeys(("label_lr", "label_step", "eta", "steps", "target_prob"), number(0)))
#: of a trial in a checkpoint, and of what a search has found
TRIAL_FORM = record(
    {"settings": _SETTINGS, "learned": maybe(each(whole())), "failed": maybe(text), "seconds": number(0)}
)
_SEARCH = record(
    {
        "budget": number(0),
        "cost": number(0),
        "epochs": whole(1),
        "seconds": number(0),
        "chosen": text,
        "candidates": each(
            record(
                {
                    "name": text,
                    "settings": _SETTINGS,
                    "cost": number(0),
                    "failed": maybe(text),
                    "against": maybe(text),
                    "right_by_choosing": _RATE,
                    "chance": _RATE,
                }
            )
        ),
    }
)


def SEARCH_FORM(value: Any, name: str) -> None:
    _SEARCH(value, name)
    right = {row["name"]: row["right_by_choosing"] for row in value["candidates"]}
    for candidate in ("none", value["chosen"]):
        if right.get(candidate) is None:
            raise ValueError(f"{name}.candidates says nothing of {candidate}")


SEAL_FORM = record({"bytes": whole(), "digest": text})
#: of a stage, of the labels and of the whole, as :func:`stage_summary`, :func:`write_labels`, :func:`summary_of` give
STAGE_FORM, LABELS_FORM = record(_STAGE, _BESIDE), record(_LABELS, _OF_LABELS)
SUMMARY_FORM = record(
    {
        "num_classes": whole(2, MOST_CLASSES),
        "input_shape": maybe(each(whole(1, 2**20))),
        "class_names": each(text),
        "dataset": text,
        "noise": text,
        "noise_rate": _RATE,
        "method": text,
        "uses_meta_batch": truth,
        "learns_labels": truth,
        "model": text,
        "epochs": whole(1),
        "seed": whole(),
        "optimizer": text,
        "lookahead": maybe(text),
        "label_lr": maybe(number(0)),
        "train_size": whole(1),
        "meta_size": whole(),
        "test_size": maybe(whole()),
        "baselines": table(STAGE_FORM),
        **_STAGE,
        **_LABELS,
        "warnings": each(text),
        **dict.fromkeys(("fastmeta", "precision", "compile", "approx", "device", "torch"), text),
        "threads": whole(1),
    },
    {
        **_BESIDE,
        **_OF_LABELS,
        "label_update": maybe(text),
        "uses_clean": truth,
        "noise_matrix": maybe(each(each(number(0, 1)))),
        "val_size": whole(1),
        "overlap": maybe(whole()),
        "label_step": maybe(number(0)),
        "files": record({}, dict.fromkeys(result_files(True, True, True), SEAL_FORM)),
        "search": SEARCH_FORM,
        "digest": anything,
        "ranks": whole(2),
    },
)


def read_summary(path: Path) -> dict[str, Any]:
    summary = read_schema(path, SCHEMA, SCHEMA_VERSION)
    SUMMARY_FORM(summary, "")
    classes = summary["num_classes"]
    if len(summary["class_names"]) != classes:
        raise ValueError(f"class_names has {len(summary['class_names'])} names for num_classes {classes}")
    if any(max(flip["given"], flip["learned"]) >= classes for flip in summary["label_flips"]):
        raise ValueError(f"label_flips names a class above num_classes {classes}")
    if (reading := summary.get("reading")) and reading["chosen"] not in reading["readings"]:
        raise ValueError(f"reading.readings has none that is called {reading['chosen']}")
    if summary.get("digest", summary_digest(summary)) != summary_digest(summary):
        raise ValueError("its content and its digest differ: it has changed since it was written")
    return summary


def summary_digest(summary: Mapping[str, Any]) -> str:
    def timeless(values: Mapping[str, Any]) -> dict[str, Any]:
        return {k: timeless(v) if k in ("finetuned", "search") else v for k, v in values.items() if k != "seconds"}

    baselines = {name: timeless(stage) for name, stage in summary["baselines"].items()}
    content = {k: v for k, v in timeless(summary).items() if k != "digest"} | {"baselines": baselines}
    return new_digest(json.dumps(content, sort_keys=True).encode()).hexdigest()
