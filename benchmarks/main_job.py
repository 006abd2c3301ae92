"""The main job over ten seeds, as the README quotes it: `python benchmarks/main_job.py` writes results/main-job.json.

Two more runs per seed freeze the labels at the soft start and at a softer one, to tell what learning them adds;
an SVC of scikit-learn on the same noisy labels tells how easy the digits are.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import torch
from sklearn.svm import SVC

import fastmeta
from fastmeta.bench.environment import record
from fastmeta.data import load_dataset, split
from fastmeta.training import LabelConfig

RESULTS = Path(__file__).parent / "results"
SEEDS = range(10)
KEPT = ("test_accuracy_last", "test_accuracy_best", "label_accuracy_initial", "label_accuracy_final")
FROZEN = {
    "soft_start_frozen": LabelConfig(label_lr=1e-9),
    "softer_start_frozen": LabelConfig(label_lr=1e-9, target_prob=0.4),
}
MORE = ("labels_corrected", "labels_spoiled", "wrong_label_average_precision", "noise_rate")


def svc_accuracy(seed: int) -> float:
    splits = split(load_dataset("digits", seed=seed), noise="uniform:0.4", seed=seed)
    (x, y), (x_test, y_test) = ((part.x.reshape(len(part), -1) / 16, part.y) for part in (splits.train, splits.test))
    return float(SVC().fit(x, y).score(x_test, y_test))


def main() -> None:
    runs = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            summary = fastmeta.train(fastmeta.TrainConfig(seed=seed, out=f"{folder}/run")).summary
            wall = time.perf_counter() - began
            frozen = {
                name: fastmeta.train(
                    fastmeta.TrainConfig(seed=seed, out=f"{folder}/{name}", baselines="none", labels=labels)
                ).summary
                for name, labels in FROZEN.items()
            }
        run = {k: summary[k] for k in (*KEPT, *MORE)}
        run["baselines"] = {k: {m: v[m] for m in KEPT[:2]} for k, v in summary["baselines"].items()}
        run |= {name: {m: summary[m] for m in KEPT[:2]} for name, summary in frozen.items()}
        run["svc"] = svc_accuracy(seed)
        runs.append({"seed": seed, "wall_seconds_of_all_four": wall, **run})
        print(json.dumps(runs[-1]), flush=True)
    content = {
        "schema": 1,
        "kind": "main job",
        "environment": record(torch.device("cpu"), "python benchmarks/main_job.py"),
        "runs": runs,
    }
    (RESULTS / "main-job.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
