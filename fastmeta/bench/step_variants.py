"""One whole iteration of Algorithm 1 in all the ways that a user could write it; plain SGD steps are the unit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from fastmeta import reference
from fastmeta.bench import peers, step_losses, step_plain
from fastmeta.bench.step_problem import Problem
from fastmeta.bench.step_variant import Builder, Variant, captured, on_fake_tensors
from fastmeta.meta import MetaStep
from fastmeta.meta.engines import CompileMode

PLAIN, REFERENCE = "sgd", "reference"


def fastmeta_variant(
    problem: Problem,
    tangent: Any = "auto",
    compile: CompileMode = "off",
    approx: str | None = None,
    one_graph: bool = False,
) -> Variant:
    model, labels = problem.model(), problem.labels()
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)
    # batches of the trainer's samplers hold no row twice, and neither does this one
    meta_step = MetaStep(
        model,
        labels,
        optimizer,
        label_lr=problem.label_lr,
        tangent=tangent,
        unique_index=True,
        compile=compile,
        approx=approx,
        micro_batch=max(len(problem.index), len(problem.y_meta)) if one_graph else None,
    )

    def step() -> None:
        with problem.precision():
            meta_step((problem.x, problem.index), (problem.x_meta, problem.y_meta))
        if meta_step.eager_because:
            raise RuntimeError(f"has no graph: {meta_step.eager_because}")

    period = meta_step.approx.number if meta_step.approx.kind == "every" else 1

    def graphs() -> None:
        of_shape = meta_step.graphs  # "every:k" has a second, for the steps between
        for i in range(period):
            on_fake_tensors(of_shape[min(i, len(of_shape) - 1)])

    return Variant(
        step,
        model,
        labels.label_logits,
        exact=tangent != "difference" and approx is None,
        period=period,
        note=lambda: "" if meta_step.plan is None else meta_step.plan.kind,
        finite=lambda: int(meta_step.nonfinite_steps) == 0,
        visible=None if compile == "off" else graphs,
    )


def _reference(problem: Problem) -> Variant:
    model, table = problem.model(), problem.labels().label_logits
    sgd = reference.SGDState(lr=problem.lr)

    def step() -> None:
        with problem.precision():
            rows, _ = reference.meta_step(
                model,
                table[problem.index],
                reference.instance_probs,
                problem.x,
                problem.x_meta,
                problem.y_meta,
                label_lr=problem.label_lr,
                optimizer=sgd,
            )
        table[problem.index] = rows

    return Variant(step, model, table)


#: name -> builder; a builder returns the variant or one line that says why it is skipped
VARIANTS: dict[str, Builder] = {
    PLAIN: step_plain.eager,
    "sgd:compiled": step_plain.compiled,
    "sgd:captured": partial(captured, step_plain.capturable),
    "sgd:compiled-captured": partial(captured, step_plain.compiled),
    "fastmeta": fastmeta_variant,
    "fastmeta:reverse": partial(fastmeta_variant, tangent="reverse"),
    "fastmeta:forward": partial(fastmeta_variant, tangent="forward"),
    "fastmeta:one-graph": partial(fastmeta_variant, one_graph=True),
    "fastmeta:trace": partial(fastmeta_variant, compile="trace"),
    "fastmeta:full": partial(fastmeta_variant, compile="full"),
    "fastmeta:difference": partial(fastmeta_variant, tangent="difference"),
    "fastmeta:delayed": partial(fastmeta_variant, approx="delayed"),
    "fastmeta:delayed-full": partial(fastmeta_variant, approx="delayed", compile="full"),
    "fastmeta:last:1": partial(fastmeta_variant, approx="last:1"),
    "fastmeta:last:1-full": partial(fastmeta_variant, approx="last:1", compile="full"),
    "fastmeta:every:4": partial(fastmeta_variant, approx="every:4"),
    "fastmeta:every:4-full": partial(fastmeta_variant, approx="every:4", compile="full"),
    REFERENCE: _reference,
    "reference:captured": partial(captured, _reference),
    "reference:compiled": peers.compiled_reference.build,
    "autograd": peers.autograd.build,
    "higher": peers.libraries.higher_step,
    "torchopt": peers.libraries.torchopt_step,
    "emlc": peers.emlc_jvp.build,
    "betty": peers.betty_difference.build,
    **step_losses.VARIANTS,
}


def is_compiled(name: str) -> bool:
    """Whether inductor takes seconds to minutes for it."""
    return "compiled" in name or name.endswith("full")


def is_captured(name: str) -> bool:
    return name.endswith("captured")


def is_plain(name: str) -> bool:
    """Whether it is a plain SGD step, of which the fastest is the unit."""
    return name.startswith(PLAIN)


def truth_of(name: str) -> str:
    """The variant whose first step in float64 is what `name` must take: of its own loss, plainly written."""
    if is_plain(name):
        return PLAIN
    return step_losses.naive_of(name) or REFERENCE


_MAIN = (
    PLAIN,
    "sgd:compiled",
    "fastmeta",
    "fastmeta:trace",
    "fastmeta:full",
    REFERENCE,
    "higher",
    "torchopt",
)
_MAIN_CUDA = (
    *(name for name in VARIANTS if is_captured(name)),
    "fastmeta:delayed-full",
    "fastmeta:last:1-full",
    "fastmeta:every:4-full",
)
_PEERS = (
    PLAIN,
    "sgd:compiled",
    "fastmeta",
    "fastmeta:trace",
    "fastmeta:full",
    REFERENCE,
    "reference:compiled",
    "autograd",
    "higher",
    "torchopt",
    "emlc",
    "betty",
    *step_losses.VARIANTS,
)
#: names that stand for several variants
PRESETS = {
    "default": "steps of labels that need no compiler",
    "main": "the plain step, ours and others, compiled too",
    "peers": "ours beside EMLC's and Betty's ways and a compiled reference, and our mwnet, l2rw, mlc beside naive ones",
    "all": "every one",
}


def chosen(names: Sequence[str], device: str) -> list[str]:
    """Variants by name or preset, each once. ValueError for an unknown one."""
    out: list[str] = []
    for name in names:
        if name == "default":
            labels = [k for k in VARIANTS if k not in step_losses.VARIANTS]
            out += [k for k in labels if not is_compiled(k) and (device == "cuda" or not is_captured(k))]
        elif name == "main":
            out += _MAIN + (_MAIN_CUDA if device == "cuda" else ())
        elif name == "peers":
            out += _PEERS
        elif name == "all":
            out += VARIANTS
        elif name in VARIANTS:
            out.append(name)
        else:
            raise ValueError(f"unknown variant {name!r}: expected some of {', '.join((*PRESETS, *VARIANTS))}")
    return list(dict.fromkeys(out))
