"""The main job over ten seeds, as the README quotes it: `python benchmarks/main_job.py` writes results/main-job.json.

The job itself is `fastmeta train` without arguments, with its three baselines. Beside it, on the same samples and with
the same network: labels that are softened and never moved, training as given with a hundred steps on the clean images
behind it, and scikit-learn's kernel SVM on the labels as given, on given and clean ones, and on those of both networks.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.svm import SVC

import fastmeta
from fastmeta.bench.environment import record
from fastmeta.data import load_dataset, split
from fastmeta.data.images import Transform, load_batch
from fastmeta.training import DataConfig

RESULTS = Path(__file__).parent / "results"
SEEDS = range(10)
ACCURACY = ("test_accuracy_last", "test_accuracy_best")
LABELS = ("label_accuracy_final", "labels_corrected", "labels_spoiled", "wrong_label_average_precision")
RIVALS = ("noisy", "union", "clean", "softened", "finetuned")
TARGET_PROB, FINETUNE_STEPS = 0.4, 100
#: 97.5% quantile of Student's t with nine degrees of freedom, of ten seeds
T9 = 2.262


def one_seed(seed: int) -> dict[str, Any]:
    """The figures of all rows: test accuracy of each, and of those that read labels what became of these."""
    began, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        parts = DataConfig(split_seed=seed)  # train, test and clean images are drawn anew too
        job = fastmeta.train(fastmeta.TrainConfig(seed=seed, out=f"{folder}/learned", data=parts))
        wall = time.perf_counter() - began
        softened, given = (
            fastmeta.train(
                fastmeta.TrainConfig(
                    seed=seed, out=f"{folder}/{method}", method=method, baselines="none", data=parts, **more
                )
            )
            for method, more in (
                ("label_smoothing", {"options": {"target_prob": TARGET_PROB}}),
                ("onehot", {"finetune_steps": FINETUNE_STEPS}),
            )
        )
        with np.load(f"{folder}/learned/labels.npz") as table:
            learned = table["learned"]
    tuned = given.summary["finetuned"]
    summary = job.summary
    figures = {
        "learned": {k: summary[k] for k in (*ACCURACY, *LABELS)},
        **{name: {k: row[k] for k in ACCURACY} for name, row in summary["baselines"].items()},
        "softened": {k: softened.summary[k] for k in ACCURACY},
        "finetuned": {ACCURACY[0]: tuned["test_accuracy"], **_labels_of(tuned)},
        "svm": _svm(seed, str(job.config.noise), learned, given.finetuned),
    }
    return {
        "seed": seed,
        "noise": job.config.noise,
        "label_accuracy_initial": summary["label_accuracy_initial"],
        **figures,
        "wall_seconds_of_the_job": wall,
        "wall_seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
    }


def _labels_of(tuned: dict[str, Any]) -> dict[str, Any]:
    """What became of labels, read off the network that was fine-tuned."""
    figures = tuned["labels"]["network"]
    return {k: figures[k.removesuffix("_final")] for k in LABELS}


def _svm(seed: int, noise: str, learned: np.ndarray, tuned: torch.nn.Module) -> dict[str, float]:
    """Test accuracy of scikit-learn's SVC on each kind of labels; "finetuned": on what that network says."""
    splits = split(load_dataset("digits", seed=seed), noise=noise, seed=seed)
    (x, given), (x_clean, clean), (x_test, y_test) = (
        (np.asarray(part.x).reshape(len(part), -1) / 16, np.asarray(part.y))
        for part in (splits.train, splits.meta, splits.test)
    )
    both = np.concatenate([x, x_clean]), np.concatenate([given, clean])
    read_off = _classes(tuned, np.asarray(splits.train.x))
    on = {"noisy": (x, given), "union": both, "learned": (x, learned), "finetuned": (x, read_off)}
    return {name: float(SVC().fit(*rows).score(x_test, y_test)) for name, rows in on.items()}


def _classes(network: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """What `network` says of training images, brought to scale as in training."""
    x = torch.from_numpy(np.ascontiguousarray(images))
    with torch.no_grad():
        return network(load_batch(x, torch.arange(len(x)), Transform.of(x))).argmax(1).numpy()


def difference(values: Iterable[tuple[float, float]]) -> dict[str, float]:
    """Mean of paired differences with its 95% interval, by Student's t."""
    found = [ours - theirs for ours, theirs in values]
    assert len(found) == 10, "the quantile is that of ten seeds"
    mean, half = statistics.mean(found), T9 * statistics.stdev(found) / math.sqrt(len(found))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def differences(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of learned labels to each rival, at the last epoch; of the SVM on them to the SVM on others."""
    last = ACCURACY[0]
    found = {name: difference((r["learned"][last], r[name][last]) for r in runs) for name in RIVALS}
    for name in ("noisy", "union", "finetuned"):
        found[f"svm:{name}"] = difference((r["svm"]["learned"], r["svm"][name]) for r in runs)
    found["labels right:finetuned"] = difference(
        (r["learned"]["label_accuracy_final"], r["finetuned"]["label_accuracy_final"]) for r in runs
    )
    return found


def main() -> None:
    runs = []
    for seed in SEEDS:
        runs.append(one_seed(seed))
        print(json.dumps(runs[-1]), flush=True)
    content = {
        "schema": 2,
        "kind": "main job",
        "environment": record(torch.device("cpu"), "python benchmarks/main_job.py"),
        "learned_minus": differences(runs),
        "runs": runs,
    }
    (RESULTS / "main-job.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
