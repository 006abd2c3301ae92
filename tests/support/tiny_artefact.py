"""A table of three runs that take a blink: `python -m tests.support.tiny_artefact OUT` carries it out."""

import sys
from pathlib import Path

import numpy as np

from fastmeta.paper import Artefact, Claim, Reading, Row, Scale, Wanted, higher, published
from fastmeta.paper.carry_out import Plan, Watcher, carry_out
from fastmeta.training import OptimConfig, TrainConfig
from tests.support.runs import two_classes


class Tiny(Artefact):
    name, title = "tiny", "A table of three runs"
    epochs = 3
    #: of the plain run
    lr = 0.1

    def __init__(self, npz, name="tiny", **changes):
        self.npz, self.name = npz, name
        vars(self).update(changes)

    def config(self, method, lr=0.1):
        common = {"dataset": f"npz:{self.npz}", "model": "mlp", "epochs": self.epochs, "threads": 1}
        return TrainConfig(**common, method=method, baselines="none", optim=OptimConfig(lr=lr), checkpoint_seconds=0.0)

    def wanted(self, scale):
        teacher = Wanted(self.config("onehot", self.lr))
        student = Wanted(self.config("distill"), sources={"teacher": teacher})
        return {"plain": teacher, "smoothed": Wanted(self.config("label_smoothing")), "student": student}

    def read(self, found):
        column, told = "CIFAR-10 40%", published("table6")
        cells = {name: found.cell(name, told.number("onehot", column)) for name in self.wanted(found.scale)}
        rows = [Row(name, {column: cell}, clean="no", ours=name == "student") for name, cell in cells.items()]
        claims = [higher("Plain is better.", cells["plain"], cells["smoothed"], published="it is", sign=True)]
        return Reading((column,), rows, claims, notes=["All is smaller."])


def plan(out, *artefacts, scale="smoke", seeds=2):
    out = Path(out)
    scale = Scale(scale, out)
    return Plan(scale, tuple(range(seeds)), artefacts, {one.name: one.wanted(scale) for one in artefacts})


def data(folder):
    np.savez(Path(folder) / "two.npz", **two_classes())
    return Path(folder) / "two.npz"


__all__ = ["Claim", "Tiny", "data", "plan"]

if __name__ == "__main__":

    class Telling(Watcher):
        def run(self, number, total, name, config):
            print(number, flush=True)
            return super().run(number, total, name, config)

    carry_out(plan(sys.argv[2], Tiny(sys.argv[1], epochs=int(sys.argv[3])), seeds=1), Telling())
