"""Steps of other losses than labels: MW-Net, L2RW and MLC through the engine, and each as its paper's formula reads.

The naive form is autograd through the look-ahead (:func:`fastmeta.reference.meta_gradient`), then a plain step; it is
the truth that ours is compared with. Learned losses move by SGD: under Adam the first step is the gradient's sign,
which would hide a gradient of wrong length from the comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from fastmeta import reference
from fastmeta.bench.step_problem import Problem
from fastmeta.bench.step_variant import Builder, Variant, on_fake_tensors
from fastmeta.losses import BatchWeights, LabelCorrector, LearnableLoss, WeightingNet
from fastmeta.meta import MetaStep
from fastmeta.meta.engines import CompileMode

#: Shu et al. 2019, Eqs. (3) to (6); Ren et al. 2018, Algorithm 1; Zheng et al. 2021
LOSSES: dict[str, Callable[[torch.Tensor, int], LearnableLoss]] = {
    "mwnet": WeightingNet,
    "l2rw": BatchWeights,
    "mlc": LabelCorrector,
}
#: of SGD on the loss's parameters: far enough for float32 to tell a step from rounding
LOSS_LR = 1.0


def _loss(name: str, problem: Problem) -> LearnableLoss:
    """With the same initial weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(problem.config.seed)
        return LOSSES[name](problem.targets.cpu(), problem.classes).to(problem.device, problem.dtype)


def _ours(name: str, problem: Problem, compile: CompileMode = "off") -> Variant:
    model, loss = problem.model(), _loss(name, problem)
    sgd = None if loss.moves_itself else torch.optim.SGD(loss.parameters(), lr=LOSS_LR)
    meta_step = MetaStep(
        model,
        loss,
        torch.optim.SGD(model.parameters(), lr=problem.lr),
        loss_optimizer=sgd,
        unique_index=True,  # as of the batches of the trainer
        compile=compile,
    )

    def step() -> None:
        with problem.precision():
            meta_step((problem.x, problem.index), (problem.x_meta, problem.y_meta))
        if meta_step.eager_because:
            raise RuntimeError(f"has no graph: {meta_step.eager_because}")

    return Variant(
        step,
        model,
        loss=loss,
        note=lambda: "" if meta_step.plan is None else meta_step.plan.kind,
        finite=lambda: int(meta_step.nonfinite_steps) == 0,
        visible=None if compile == "off" else lambda: on_fake_tensors(meta_step.graphs[0]),
    )


def _naive(name: str, problem: Problem) -> Variant:
    model, loss = problem.model(), _loss(name, problem)
    sgd = reference.SGDState(lr=problem.lr)

    def step() -> None:
        phi, loss_of = loss.seen_by(problem.index, problem.x)
        with problem.precision():
            grads = reference.meta_gradient(
                model, loss_of, phi, problem.x, problem.x_meta, problem.y_meta, lookahead=sgd
            ).grads
            if loss.for_one_step:
                pull = {k: (-g).clamp(min=0) for k, g in grads.items()}
                phi = {k: w / w.sum().clamp(min=torch.finfo(w.dtype).tiny) for k, w in pull.items()}
            else:
                with torch.no_grad():
                    for k, g in grads.items():
                        phi[k].sub_(g, alpha=LOSS_LR)
            reference.plain_step(model, loss_of, phi, problem.x, optimizer=sgd)

    return Variant(step, model, loss=loss)


#: name -> builder
VARIANTS: dict[str, Builder] = {}
for _name in LOSSES:
    VARIANTS[_name] = partial(_ours, _name)
    VARIANTS[f"{_name}:trace"] = partial(_ours, _name, compile="trace")
    VARIANTS[f"{_name}:full"] = partial(_ours, _name, compile="full")
    VARIANTS[f"naive:{_name}"] = partial(_naive, _name)


def naive_of(variant: str) -> str | None:
    """The naive step of the same loss; None for a variant of labels."""
    name = variant.removeprefix("naive:").split(":")[0]
    return f"naive:{name}" if name in LOSSES else None
