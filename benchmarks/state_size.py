"""How large the state of a run is in files of a limited size: ResNet-18 with labels of 50,000 rows of 100 classes.

    python benchmarks/state_size.py        # writes results/state-size.json

Images are random; a run is stopped before its first step, and its checkpoint is measured. Momentum is 0.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

import fastmeta
from fastmeta.bench.environment import record

ROWS, CLASSES, LIMIT = 50_000, 100, 15.0
RESULT = Path(__file__).parent / "results" / "state-size.json"


class Stopped(Exception):
    pass


class Stopper(fastmeta.Listener):
    def stage(self, stage: object) -> None:
        raise Stopped

    def warning(self, text: str) -> None:
        pass


def sizes(dtype: str) -> dict[str, float | str | int]:
    """Of the checkpoint, in MB of 10^6 bytes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (ROWS, 32, 32, 3), dtype=np.uint8)
    clean = images[: 2 * CLASSES] ^ 1  # other images
    y = np.arange(ROWS) % CLASSES
    data = {"x_train": images, "y_train": y, "x_meta": clean, "y_meta": y[: len(clean)]}
    with tempfile.TemporaryDirectory() as folder:
        config = fastmeta.TrainConfig.from_mapping(
            {
                "model": "resnet18",
                "max_shard_mb": LIMIT,
                "out": str(Path(folder, "run")),
                "optim": {"momentum": 0.0},
                "labels": {"update": "exact", "canaries": "off", "dtype": dtype},
            }
        )
        with contextlib.suppress(Stopped):
            fastmeta.train(config, data=data, listener=Stopper())
        files = [file.stat().st_size / 1e6 for file in Path(folder, "run", "checkpoint").iterdir()]
    return {"labels": dtype, "total_mb": sum(files), "largest_file_mb": max(files), "files": len(files)}


def main() -> None:
    rows = [sizes(dtype) for dtype in ("float32", "bfloat16")]
    content = {
        "schema": 1,
        "kind": "state-size",
        "environment": record(torch.device("cpu"), "python benchmarks/state_size.py"),
        "limit_mb": LIMIT,
        "rows": rows,
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
