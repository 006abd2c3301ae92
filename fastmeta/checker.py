"""``fastmeta.check``: is the meta-gradient of *this* model right, which way makes it, and what does it cost?

A float64 copy of the user's model is held against :mod:`fastmeta.reference`; time and memory are those of a copy in the
model's own precision. Nothing of the caller's changes.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fastmeta import reference
from fastmeta._numbers import as_real
from fastmeta._text import printable, shown
from fastmeta.functional.call import pick_logits, plain
from fastmeta.functional.network import Network, functional_module, recorded
from fastmeta.functional.random_state import RandomState
from fastmeta.functional.turns import TURN
from fastmeta.losses import LearnableLoss
from fastmeta.measure import interleave, peak_bytes
from fastmeta.meta.gradient import check_batch, planned_gradient
from fastmeta.meta.lookahead import LookAhead
from fastmeta.meta.tangents import TangentChoice, TangentKind, TangentPlan, first_failing_layer, plan_tangent

#: relative error, in float64, above which an exact way is called wrong; they agree to 1e-15 on healthy models
EXACT = 1e-8
#: the same for differences, which are inexact by design
CLOSE = 1e-2


@dataclass
class CheckRow:
    """One kind of tangent, held against the truth."""

    tangent: str
    verdict: str  #: "exact", "inexact", "WRONG", "cannot" or "timed"
    error: float | None = None  #: relative error of the label gradient in float64
    cosine: float | None = None
    milliseconds: float | None = None  #: of one label gradient in the model's own precision, median of three
    peak_mib: float | None = None
    note: str = ""
    warning: str = ""


@dataclass
class CheckReport:
    """What :func:`check` found; ``print`` it, or ask :attr:`ok`."""

    truth: str
    rows: list[CheckRow] = field(default_factory=list)
    warning: str = ""  #: where "auto" found differences alone: which layers leave nothing else
    suspect: str = ""  #: where a way is WRONG: the first layer whose derivative is not that of its output

    @property
    def ok(self) -> bool:
        """No way gives a wrong gradient, some way gives a right one, and so does "auto" if it was tried."""
        verdicts = {row.tangent.split()[0]: row.verdict for row in self.rows}
        right = [way for way, verdict in verdicts.items() if verdict in ("exact", "inexact")]
        return "WRONG" not in verdicts.values() and bool(right) and ("auto" in right or "auto" not in verdicts)

    def __str__(self) -> str:
        def cell(value: float | None, form: str) -> str:
            return "-" if value is None else format(value, form)

        lines = [f"{'tangent':<22}{'verdict':<9}{'rel. error':>11}{'cosine':>11}{'ms':>10}{'peak MiB':>10}"]
        for r in self.rows:
            lines.append(
                f"{r.tangent:<22}{r.verdict:<9}{cell(r.error, '.1e'):>11}{cell(r.cosine, '.7f'):>11}"
                f"{cell(r.milliseconds, '.1f'):>10}{cell(r.peak_mib, '.1f'):>10}"
            )
        notes = [printable(f"  {r.tangent}: {r.note}") for r in self.rows if r.note]
        suspect = [printable(f"suspect: {self.suspect}")] if self.suspect else []
        suspect += [printable(f"warning: {self.warning}")] if self.warning else []
        verdict = "the meta-gradient of this model is right" if self.ok else "NOT OK: see the rows above"
        return "\n".join([*lines, *notes, f"truth: {self.truth}", *suspect, verdict])


def check(
    model: nn.Module,
    loss: LearnableLoss,
    train: tuple[Any, Tensor],
    meta: tuple[Any, Tensor],
    lr: float,
    *,
    tangents: tuple[TangentChoice, ...] = ("auto", "reverse", "forward", "difference"),
    logits_of: Callable[[Any], Tensor] | None = None,
    timing: bool = True,
) -> CheckReport:
    """Hold every way of making the meta-gradient of a loss against the reference, in float64, on the user's own batch.

    The truth is autograd through the look-ahead step; where a layer has no second derivative, or autograd drops it in
    silence, central differences of the meta loss along random directions in label space.

    Args:
        model, labels, train, meta, logits_of: as for :func:`fastmeta.label_gradient`.
        lr: of the look-ahead step, above 0.
        tangents: the ways to try.
        timing: also measure milliseconds and peak memory, in the model's own precision.

    Returns:
        CheckReport with a row per way: verdict, relative error, cosine, ms, peak MiB; a way that cannot be used names
        the first layer that stands in its way. ``report.ok`` is False on a wrong gradient.

    Raises:
        ValueError: a model that fails on the batch in its own precision, or arguments that do not fit it.
    """
    rate = as_real(lr)
    if rate is None:
        raise ValueError(f"lr must be a number, got {shown(lr)}")
    if not rate > 0:
        raise ValueError(f"lr must be above 0, got {rate}: a look-ahead of length zero has no label gradient")
    if rate == math.inf:
        raise ValueError("lr must be finite, got inf")
    known = get_args(TangentChoice)
    ways = () if isinstance(tangents, str) else tuple(tangents)
    if not ways or not all(isinstance(way, str) and way in known for way in ways):
        raise ValueError(f"tangents must be a tuple of some of {', '.join(known)}, got {shown(tangents)}")
    train, meta = check_batch(loss, train, meta)
    with TURN, recorded():
        own = _Problem(model, loss, train, meta, rate, logits_of, None)
        double = _Problem(model, loss, train, meta, rate, logits_of, torch.float64)
        random = RandomState(train[1].device, [*own.network.generators, *double.network.generators])
        try:
            report = _report(own, double, ways, timing, random)
        finally:
            random.restore()
    if report.warning:
        warnings.warn(report.warning, stacklevel=2)
    return report


def _report(
    own: _Problem, double: _Problem, tangents: tuple[TangentChoice, ...], timing: bool, random: RandomState
) -> CheckReport:
    own.try_forward(random)
    try:
        plan_tangent(double.network, double.train[0], "difference")
    except Exception as error:  # of the user's model: it fails in float64, or must not be differentiated at all
        note = f"{type(error).__name__}: {_first_line(error)} [in a float64 copy of the model]"
        return CheckReport("none", [CheckRow(t, "cannot", note=note) for t in tangents])
    truth = double.truth(random)
    report = CheckReport(truth.name)
    for tangent in tangents:
        report.rows.append(_check_way(double, own if timing else None, tangent, truth, random))
        report.warning = report.warning or report.rows[-1].warning
    if timing:
        report.rows.append(_reference_row(own, random))
    if any(row.verdict == "WRONG" for row in report.rows):
        report.suspect = first_failing_layer(double.network, double.train[0], "reverse", random)
    return report


class _Problem:
    """Copies of everything, in float64 or in the model's own precision."""

    def __init__(
        self,
        model: nn.Module,
        loss: LearnableLoss,
        train: tuple[Any, Tensor],
        meta: tuple[Any, Tensor],
        lr: float,
        logits_of: Callable[[Any], Tensor] | None,
        dtype: torch.dtype | None,
    ) -> None:
        def cast(t: Any) -> Any:
            return t.to(dtype) if dtype is not None and isinstance(t, Tensor) and t.is_floating_point() else t

        model = functional_module(model)
        try:
            self.model = copy.deepcopy(model)
        except Exception as error:  # of a module that holds what cannot be copied, such as results of its last forward
            raise ValueError(f"check works on copies, and the model has none: {_first_line(error)}") from error
        self.loss = loss.copy_for(train[1])
        if dtype is not None:
            self.model.to(dtype)
            self.loss.to(dtype)
        self.train = (tree_map(cast, plain(model, train[0])), train[1])
        self.meta = (tree_map(cast, plain(model, meta[0])), meta[1])
        self.lr = lr
        self.logits_of = logits_of
        self.network = Network(self.model, None, logits_of)

    def try_forward(self, random: RandomState) -> None:
        """ValueError if the arguments do not fit each other or the model."""
        (x, index), (x_meta, y_meta) = self.train, self.meta
        C, N = self.loss.num_classes, self.loss.row_count()
        for name, rows, size in (("index", index, N), ("y_meta", y_meta, C)):
            if size is not None and (int(rows.min()) < 0 or int(rows.max()) >= size):
                raise ValueError(f"{name} must lie in [0, {size - 1}], got {int(rows.min())} to {int(rows.max())}")
        for name, inputs, count in (("x", x, len(index)), ("x_meta", x_meta, len(y_meta))):
            try:
                with torch.no_grad(), random.replay():
                    logits = self.network(self.network.params, self.network.state(), inputs)
            except Exception as error:  # of the user's model
                raise ValueError(f"the model fails on {name}: {type(error).__name__}: {_first_line(error)}") from error
            wanted = count, logits.shape[-1] if C is None else C
            if logits.shape != wanted:
                raise ValueError(
                    f"the logits of {name} must have shape {wanted} for these labels, got {tuple(logits.shape)}"
                )

    def gradient(self, plan: TangentPlan, random: RandomState) -> Tensor:
        """By `plan`: a vector over all parameters that :meth:`phi` names."""
        lookahead = LookAhead(self.lr, None).prepare(self.network.params)
        with random.replay():
            made = planned_gradient(self.network, self.loss, lookahead, plan, self.train, self.meta)
        return self._flat(made.gradient.grads)

    def _flat(self, grads: dict[str, Tensor]) -> Tensor:
        phi = self.phi
        return torch.cat([(grads[k] if k in grads else torch.zeros_like(t)).flatten() for k, t in phi.items()])

    @property
    def phi(self) -> dict[str, Tensor]:
        """The loss's parameters as the batch sees them."""
        return {k: t.detach() for k, t in self.loss.seen_by(self.train[1], self.train[0])[0].items()}

    def reference(self, random: RandomState, function: Callable[..., Any], phi: dict[str, Tensor]) -> Any:
        """`function` of the reference on this problem, at the parameters `phi`."""
        _, loss_of = self.loss.seen_by(self.train[1], self.train[0])
        with random.replay():
            return function(
                self.model,
                loss_of,
                phi,
                self.train[0],
                self.meta[0],
                self.meta[1],
                lookahead=reference.SGDState(self.lr),
                logits_of=self.logits_of or pick_logits,
            )

    def true_gradient(self, random: RandomState) -> Tensor:
        return self._flat(self.reference(random, reference.meta_gradient, self.phi).grads)

    def truth(self, random: RandomState) -> _Truth:
        try:
            grad = self.true_gradient(random)
            # what the tangent's double-vjp gets wrong, autograd's own double backward does too
            plan_tangent(self.network, self.train[0], "reverse")
            return _Truth("autograd through the look-ahead step, float64", None, grad)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = _first_line(error)
        # no second derivative: numbers, along a few directions
        generator = torch.Generator().manual_seed(0)
        directions, slopes = [], []
        phi = self.phi
        size = sum(t.numel() for t in phi.values())

        def meta_loss(offset: Tensor) -> Tensor:
            moved = [p + part.view_as(p) for p, part in zip(phi.values(), offset.split(lengths), strict=True)]
            loss: Tensor = self.reference(random, reference.lookahead_meta_loss, dict(zip(phi, moved, strict=True)))
            return loss

        lengths = [t.numel() for t in phi.values()]
        for _ in range(4):
            d = torch.randn(size, generator=generator, dtype=torch.float64).to(self.train[1].device)
            e = 1e-4 / float(d.abs().max())
            directions.append(d)
            slopes.append((meta_loss(e * d) - meta_loss(-e * d)) / (2 * e))
        name = f"central differences of the meta loss along {len(slopes)} directions (autograd: {reason})"
        return _Truth(name, torch.stack(directions), torch.stack(slopes))


@dataclass
class _Truth:
    name: str
    directions: Tensor | None  # (k, ...) or None for the gradient itself
    values: Tensor

    def compare(self, grad: Tensor) -> tuple[float, float]:
        """Relative error and cosine."""
        mine = grad if self.directions is None else (self.directions * grad).flatten(1).sum(1)
        size = self.values.norm()
        # where the truth is exactly zero, relative to nothing: only zero is right
        error = float((mine - self.values).norm() / torch.where(size > 0, size, torch.finfo(size.dtype).tiny))
        cosine = nn.functional.cosine_similarity(mine.flatten(), self.values.flatten(), dim=0, eps=1e-300)
        return error, float(cosine)

    @property
    def exact(self) -> float:
        # differences of a loss with curvature: 1e-8 of truncation, amplified where the slopes cancel
        return EXACT if self.directions is None else 1e-4


def _check_way(
    double: _Problem, own: _Problem | None, tangent: TangentChoice, truth: _Truth, random: RandomState
) -> CheckRow:
    try:
        plan = plan_tangent(double.network, double.train[0], tangent)
    except RuntimeError as error:
        kind: TangentKind = "forward" if tangent == "forward" else "reverse"
        layer = first_failing_layer(double.network, double.train[0], kind, random)
        return CheckRow(tangent, "cannot", note=f"first layer in the way: {layer}" if layer else str(error))
    relative, cosine = truth.compare(double.gradient(plan, random))
    bound, good = (CLOSE, "inexact") if plan.kind == "difference" else (truth.exact, "exact")
    name = f"auto ({plan.kind})" if tangent == "auto" else plan.kind
    row = CheckRow(name, good if relative <= bound else "WRONG", relative, cosine, warning=plan.warning)
    notes = [plan.reason] if tangent == "auto" else []
    if plan.math_attention:
        notes.append("attention as plain maths")
    if own is not None and tangent != "auto":
        try:
            row.milliseconds, row.peak_mib = _cost(own, lambda: own.gradient(plan, random))
        except RuntimeError as failure:
            notes.append(f"fails in the model's own precision: {_first_line(failure)}")
    row.note = "; ".join(notes)
    return row


def _reference_row(own: _Problem, random: RandomState) -> CheckRow:
    row = CheckRow("reference (autograd)", "timed")
    try:
        row.milliseconds, row.peak_mib = _cost(own, lambda: own.true_gradient(random))
    except RuntimeError as error:
        row.verdict, row.note = "cannot", _first_line(error)
    return row


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]


def _cost(problem: _Problem, body: Callable[[], Tensor]) -> tuple[float, float]:
    device = problem.train[1].device
    body()
    timing = interleave({"": [body]}, device, seconds=0, rounds=3)[""]
    return timing.median * 1e3, peak_bytes(body, device) / 2**20
