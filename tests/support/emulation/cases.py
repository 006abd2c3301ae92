"""Launches with known results: inputs of every layout that a kernel tells apart, truth by plain torch in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmeta import reference, rng
from tests.support.emulation.emulator import Call

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
NAN, INF = math.nan, math.inf

# dtypes of (logits, u, labels), as csrc/kernels.h allows them
STEP_DTYPES = [
    *((F64, F64, F64), (F32, F32, F32), (F32, F32, BF16)),
    *((BF16, u, label) for u in (BF16, F32) for label in (BF16, F32)),
    *((F16, u, label) for u in (F16, F32) for label in (F16, F32, BF16)),
]
LABEL_DTYPES = list(dict.fromkeys((t, label) for t, _, label in STEP_DTYPES))
TANGENT_DTYPES = list(dict.fromkeys((t, u) for t, u, _ in STEP_DTYPES))

# Each geometry of launch.cuh, with tails and heads: 2, 10, 33 fewer columns than threads, 5000 a block with barriers
SMALL, LARGE = (2, 10, 33, 100, 256), (1000, 5000)


def acc(dtype: torch.dtype) -> torch.dtype:
    return F64 if dtype == F64 else F32


def cases_over(dtypes: list, few: tuple = (F32, BF16)) -> Iterator[tuple]:
    """(dtypes, C, layout): float32 and bfloat16 alone at every C, other dtypes at one small C each, layouts in turn."""
    layouts = ("dense", "strided", "misaligned")
    turn = 0
    for k, types in enumerate(dtypes):
        hot = types[0] in few and len({types[0], *types[1:]}) == 1
        for C in SMALL + LARGE if hot else ((*SMALL, 129)[k % 6],):
            turn += 1
            yield types, C, layouts[turn % 3]


# ---------------------------------------------------------------------------------------------------------
# Inputs
# ---------------------------------------------------------------------------------------------------------


class Maker:
    """Random tensors of one case; the seed is the case's number."""

    def __init__(self, seed: int, layout: str = "dense") -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.layout = layout

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=self.generator, dtype=F64)

    def matrix(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """`values` (rows, C) in memory laid out as the case wants it; what lies between rows is 7."""
        rows, C = values.shape
        gap, start = {"dense": (0, 0), "strided": (16, 0), "misaligned": (3, 5)}[self.layout]
        storage = torch.full((start + rows * (C + gap) + 1,), 7.0, dtype=dtype)
        view = storage[start : start + rows * (C + gap)].view(rows, C + gap)[:, :C]
        return view.copy_(values)

    def vector(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        step = 1 if self.layout == "dense" else 2
        return torch.full((step * len(values) + 1,), 7.0).to(dtype)[: step * len(values) : step].copy_(values)

    def index(self, values: list[int]) -> Tensor:
        return self.vector(torch.tensor(values), torch.int64)


def empty_like(t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a result, full of a value that no result has."""
    return torch.full(t.shape, -77.0, dtype=dtype or t.dtype)


def results(logits: Tensor, *extra: str) -> dict[str, Tensor]:
    n = len(logits)
    row = {name: torch.full((n,), -77.0, dtype=acc(logits.dtype)) for name in ("loss", "entropy", *extra)}
    return {**row, "v": empty_like(logits)}


# ---------------------------------------------------------------------------------------------------------
# Comparison
# ---------------------------------------------------------------------------------------------------------


def assert_close(name: str, got: Tensor, truth: Tensor, scale: float | Tensor = 1.0) -> None:
    """Half an ulp of the result's dtype for the rounding, and 16 ulp of `scale`, its largest term, for the sums.

    The emulated 2^x is exact; what is bounded here is the algorithm, not the hardware's exponential.
    """
    half_ulp = torch.finfo(got.dtype).eps / 2
    accumulation = 16 * torch.finfo(acc(got.dtype)).eps
    bound = 1.01 * half_ulp * truth.abs() + accumulation * scale + torch.finfo(got.dtype).tiny
    if got.dtype == F16:
        bound = bound + 2.0**-25  # subnormal halves
    error = (got.double() - truth).abs()
    same = (got.isnan() & truth.isnan()) | (error <= bound)
    assert same.all(), f"{name}: {got[~same][:4].tolist()} for {truth[~same][:4].tolist()}"


def unchanged_outside(before: Tensor, after: Tensor) -> None:
    """What lies between and around the rows of a matrix that was written in place still holds what it held."""

    def outside(t: Tensor) -> Tensor:
        whole = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage()).clone()
        whole.as_strided(t.shape, t.stride(), t.storage_offset()).zero_()
        return whole

    assert torch.equal(outside(before), outside(after)), "written outside the rows"


@dataclass
class Case:
    name: str
    call: Call
    check: Callable[[dict[str, Tensor]], None]


def finite_rows(*tensors: Tensor | None) -> Tensor:
    good = True
    for t in tensors:
        if t is not None:
            good = good & t.double().isfinite().reshape(len(t), -1).all(1)
    return good


def spread(rows: Tensor, good: Tensor) -> Tensor:
    """Results of the good rows among NaN for the others."""
    out = torch.full((len(good), *rows.shape[1:]), NAN, dtype=F64)
    out[good] = rows
    return out


# ---------------------------------------------------------------------------------------------------------
# Soft cross-entropy and its derivatives
# ---------------------------------------------------------------------------------------------------------


def soft_cross_entropy() -> Iterator[Case]:
    for seed, ((t, p), C, layout) in enumerate(cases_over(LABEL_DTYPES)):
        make = Maker(seed, layout)
        logits = make.matrix(make.normal(3, C, scale=1e4 if seed % 3 == 0 else 3), t)
        probs = make.matrix(make.normal(3, C).softmax(-1) * (1 + seed % 2), p)
        loss, lse = (torch.full((3,), -77.0, dtype=acc(t)) for _ in range(2))
        call = Call("soft_cross_entropy", n=3, C=C, logits=logits, probs=probs, loss=loss, lse=lse)

        def check(out: dict, args: tuple = (logits, probs)) -> None:
            z, p = (x.double() for x in args)
            scale = z.abs().amax(1)
            assert_close("loss", out["loss"], reference.soft_cross_entropy(z, p, reduction="none"), scale * p.sum(1))
            assert_close("lse", out["lse"], z.logsumexp(1), scale)

        yield Case(f"{t} {p} C={C} {layout}", call, check)


def soft_cross_entropy_backward() -> Iterator[Case]:
    for seed, ((t, p), C, layout) in enumerate(cases_over(LABEL_DTYPES)):
        make = Maker(seed, layout)
        logits = make.matrix(make.normal(3, C, scale=3), t)
        probs = make.matrix(make.normal(3, C).softmax(-1), p)
        lse = logits.double().logsumexp(1).to(acc(t))
        grad = torch.ones(1, dtype=acc(t)).expand(3) if seed % 2 else make.vector(make.normal(3), acc(t))
        wanted = {"grad_logits": empty_like(logits), "grad_probs": empty_like(probs)}
        if seed % 4 == 1:
            del wanted["grad_probs"]
        if seed % 4 == 3:
            del wanted["grad_logits"]
        call = Call("soft_cross_entropy_backward", n=3, C=C, logits=logits, probs=probs, lse=lse, grad=grad, **wanted)

        def check(out: dict, args: tuple = (logits, probs, grad)) -> None:
            z, p, g = (x.double() for x in args)
            z, p = z.clone().requires_grad_(), p.clone().requires_grad_()
            loss = reference.soft_cross_entropy(z, p, reduction="none")
            truth = torch.autograd.grad((loss * g).sum(), (z, p))
            for name, value in zip(("grad_logits", "grad_probs"), truth, strict=True):
                if name in out:
                    assert_close(name, out[name], value, z.detach().abs().max() * g.abs().max())

        yield Case(f"{t} {p} C={C} {layout}", call, check)


def _directions(launcher: str, truth: Callable[..., Tensor]) -> Iterator[Case]:
    for seed, ((t, u), C, layout) in enumerate(cases_over(TANGENT_DTYPES)):
        make = Maker(seed, layout)
        logits = make.matrix(make.normal(3, C, scale=3), t)
        v = make.matrix(make.normal(3, C), u)
        with_probs = launcher == "soft_cross_entropy_hvp" and seed % 2 == 0
        probs = make.matrix(2 * make.normal(3, C).softmax(-1), (t, acc(t), BF16)[seed % 3]) if with_probs else None
        if t == F64 and probs is not None:
            probs = probs.double()
        call = Call(launcher, n=3, C=C, logits=logits, probs=probs, v=v, out=empty_like(v))

        def check(out: dict, args: tuple = (logits, v, probs)) -> None:
            z, v, p = (None if x is None else x.double() for x in args)
            assert_close("out", out["out"], truth(z, v) if p is None else truth(z, v, p), 3 * v.abs().max())

        yield Case(f"{t} {u} C={C} {layout} probs={with_probs}", call, check)


def soft_cross_entropy_hvp() -> Iterator[Case]:
    return _directions("soft_cross_entropy_hvp", reference.soft_cross_entropy_hvp)


def soft_cross_entropy_label_grad() -> Iterator[Case]:
    return _directions("soft_cross_entropy_label_grad", reference.soft_cross_entropy_label_grad)


def bad_logits() -> Iterator[Case]:
    """A row of logits that holds a NaN or an infinity has no result at all, and the others have theirs."""
    outputs = {
        "soft_cross_entropy": ("loss", "lse"),
        "soft_cross_entropy_hvp": ("out",),
        "soft_cross_entropy_label_grad": ("out",),
    }
    for seed, (launcher, value, (t, C)) in enumerate(
        itertools.product(outputs, (NAN, INF, -INF), ((F32, 10), (BF16, 100), (F64, 33), (F32, 5000)))
    ):
        make = Maker(seed)
        logits = make.normal(3, C, scale=3)
        logits[1, C // 2] = value
        tensors = {"logits": make.matrix(logits, t)}
        if launcher == "soft_cross_entropy":
            tensors["probs"] = make.matrix(make.normal(3, C).softmax(-1), t)
            tensors |= {name: torch.full((3,), -77.0, dtype=acc(t)) for name in outputs[launcher]}
        else:
            tensors["v"] = make.matrix(make.normal(3, C), t)
            tensors["out"] = empty_like(tensors["v"])

        def check(out: dict, names: tuple = outputs[launcher]) -> None:
            for name in names:
                rows = out[name].reshape(3, -1)
                assert rows.isnan().all(1).tolist() == [False, True, False], name
                assert rows[::2].isfinite().all(), name

        yield Case(f"{launcher} {value} {t} C={C}", Call(launcher, n=3, C=C, **tensors), check)


def row_dot() -> Iterator[Case]:
    for seed, ((t,), C, layout) in enumerate(cases_over([(F64,), (F32,), (BF16,), (F16,), (F32,)])):
        make = Maker(seed, layout)
        columns = 1 if seed == 0 else C
        a, b = (make.matrix(make.normal(5, columns), t) for _ in range(2))
        call = Call("row_dot", n=5, C=columns, a=a, b=b, out=torch.full((5,), -77.0, dtype=acc(t)))

        def check(out: dict, args: tuple = (a, b)) -> None:
            a, b = (x.double() for x in args)
            assert_close("out", out["out"], reference.row_dot(a, b), (a * b).abs().sum(1))

        yield Case(f"{t} C={columns} {layout}", call, check)


# ---------------------------------------------------------------------------------------------------------
# Instance labels
# ---------------------------------------------------------------------------------------------------------


def instance_loss() -> Iterator[Case]:
    for seed, ((t, label), C, layout) in enumerate(cases_over(LABEL_DTYPES)):
        make = Maker(seed, layout)
        n, N = 6 + seed % 2, 5
        logits = make.matrix(make.normal(n, C, scale=1e4 if seed % 3 == 0 else 3), t)
        table = make.matrix(make.normal(N, C, scale=2), label)
        index = make.index([4, 0, -1, 4, N, 2, 1][:n])
        weight = make.vector(make.normal(n), acc(t)) if seed % 2 else None
        logits[1, C - 1] = (NAN, INF, -INF)[seed % 3]
        table[2, 0] = (INF, -INF, NAN)[seed % 3]
        call = Call(
            "instance_loss", n=n, C=C, N=N, logits=logits, label_logits=table, index=index, weight=weight,
            **results(logits),
        )  # fmt: skip
        yield Case(
            f"{t} {label} C={C} {layout}",
            call,
            lambda out, a=(logits, table, index, weight): check_loss(out, *a),
        )


def large_values() -> Iterator[Case]:
    """Finite logits and labels of any size: a softmax that is a one-hot, in registers, in shared memory, streamed."""
    sizes = (2.0**22, 2.0**28, 1e10, 1e20)  # beyond, the smallest exponential of a CPU shows in sums
    for seed, (size, (t, C)) in enumerate(
        itertools.product(sizes, ((F32, 10), (BF16, 100), (F32, 5000), (F32, 20000)))
    ):
        make = Maker(seed)
        n = 3 if C < 20000 else 1
        logits = make.matrix(make.normal(n, C, scale=size), t)
        table = make.matrix(make.normal(n, C, scale=size if seed % 2 else 2), F32)
        logits[0] = -logits[0].abs() - size  # all of them far below zero
        index = make.index(list(range(n)))
        call = Call(
            "instance_loss", n=n, C=C, N=n, logits=logits, label_logits=table, index=index, weight=None,
            **results(logits),
        )  # fmt: skip
        yield Case(f"{size:g} {t} C={C}", call, lambda out, a=(logits, table, index, None): check_loss(out, *a))


def check_loss(
    out: dict, logits: Tensor, table: Tensor, index: Tensor, weight: Tensor | None, also_bad: Tensor | bool = False
) -> None:
    """Loss, v and entropy against the reference, given the table that they are taken with."""
    inside = (index >= 0) & (index < len(table))
    rows = table[index.clamp(0, len(table) - 1)].double()
    good = inside & finite_rows(logits, rows, weight) & ~torch.as_tensor(also_bad)
    w = None if weight is None else weight[good].double()
    z = logits.double()
    truth = reference.instance_loss(z[good], table.double(), index[good], w)
    scale = torch.where(good, z.abs().amax(1), 1.0)
    for name, value, size in zip(
        ("loss", "v", "entropy"), truth, (scale, 1 if w is None else w.abs().max(), 10.0), strict=True
    ):
        assert_close(name, out[name], spread(value, good), size)


@dataclass
class Step:
    """Arguments of an instance label step; `truth` follows them through the reference."""

    logits: Tensor
    u: Tensor
    table: Tensor  # rows, in the functional form
    index: Tensor
    weight: Tensor | None
    scale: float | Tensor
    label_lr: float | Tensor
    functional: bool
    unique: bool
    rounding: tuple[int, int | Tensor] | None = None  # seed and step

    def call(self) -> Call:
        n, C = self.logits.shape
        table = (
            {"rows_in": self.table, "rows_out": empty_like(self.table)} if self.functional else {"table": self.table}
        )
        return Call(
            "instance_label_step", n=n, C=C, N=len(self.table), functional=self.functional, index=self.index,
            unique=self.unique, logits=self.logits, u=self.u, weight=self.weight, scale=self.scale,
            label_lr=self.label_lr, rounding=self.rounding, **table, **results(self.logits, "alignment"),
        )  # fmt: skip

    def check(self, out: dict) -> None:
        old, index = self.table, self.index
        if self.functional:  # equal index means the same sample, whatever the index is
            _, index = torch.unique(self.index, return_inverse=True)
            first = [int((index == r).nonzero()[0]) for r in range(int(index.max()) + 1)]
            old = self.table[first]
            after = out["rows_out"]
            assert all(torch.equal(after[i], after[first[r]]) for i, r in enumerate(index) if after[i].isfinite().all())
            new = after[first]
        else:
            new = out["table"]
            unchanged_outside(self.table, new)
        inside = (index >= 0) & (index < len(old))
        good = inside & finite_rows(self.logits, self.u, self.weight, old[index.clamp(0, len(old) - 1)])
        moved = old.double().clone()
        args = (index[good], self.logits[good].double(), self.u[good].double(), float(self.scale), float(self.label_lr))
        w = None if self.weight is None else self.weight[good].double()
        alignment = reference.instance_label_step_(moved, *args, w)[-1]
        overflow = ~finite_rows(moved.to(old.dtype))
        touched = torch.zeros(len(old), dtype=torch.bool).index_fill_(0, index[good], True) & ~overflow
        assert torch.equal(new[~touched].nan_to_num(9), old[~touched].nan_to_num(9)), "a skipped row moved"
        step = (moved - old.double())[touched].abs().max() if touched.any() else 0
        assert_close("label rows", new[touched], moved[touched], 4 * step + old[touched].abs().double().amax(1, True))
        bad_row = overflow[index.clamp(0, len(old) - 1)] & good
        check_loss(out, self.logits, new, index, self.weight, also_bad=~good | bad_row)
        truth = spread(alignment, good)
        truth[bad_row] = NAN
        assert_close("alignment", out["alignment"], truth, self.u.double().nan_to_num(0, 0, 0).abs().max())


def instance_label_step() -> Iterator[Case]:
    seed = 0
    for (t, u, label), C, layout in cases_over(STEP_DTYPES):
        for unique in (True, False):
            seed += 1
            functional = seed % 4 >= 2
            make = Maker(seed, layout)
            n, N = 7, 6
            index = [4, 0, -1, 2, N, 1, 5] if unique else [4, 0, 4, 2, 1, N, 4]
            if functional:
                index = [90 + i for i in range(n)] if unique else [7, -3, 7, 2, -3, 1 << 40, 7]
            if C in LARGE:
                n = 5
            index = make.index(index[:n])
            rows = make.normal(N, C, scale=2)
            if functional:
                rows = make.normal(n, C, scale=2)
                rows = torch.stack([rows[int((index == i).nonzero()[0])] for i in index])
            step = Step(
                logits=make.matrix(make.normal(n, C, scale=3), t),
                u=make.matrix(make.normal(n, C), u),
                table=make.matrix(rows, label),
                index=index,
                weight=make.vector(make.normal(n), acc(t)) if seed % 3 == 0 else None,
                scale=0.0625 if seed % 2 else torch.tensor(0.0625, dtype=acc(t)),
                label_lr=torch.tensor(40.0, dtype=F32 if seed % 3 else F64) if seed % 2 else 40.0,
                functional=functional,
                unique=unique,
            )
            step.logits[1, C // 2] = (NAN, INF, -INF)[seed % 3]
            if not unique:
                step.u[4 if seed % 2 else 0, 0] = (-INF, NAN, INF)[seed % 3]  # a bad occurrence among good ones
            if seed % 5 == 0 and not functional:
                step.table[2, C - 1] = (-INF, INF, NAN)[seed % 3]
            if step.weight is not None:
                step.weight[3] = NAN
            name = f"{t} {u} {label} C={C} {layout} unique={unique} functional={functional}"
            yield Case(name, step.call(), step.check)


def instance_label_step_refused() -> Iterator[Case]:
    """Rows that would not be finite after the step stay, everything about them is NaN."""
    for seed in range(8):
        make = Maker(seed)
        unique = seed % 2 == 0
        label_lr = (1e30, INF, NAN, 1e7)[seed // 2]  # the last leaves float16's range alone
        label = F16 if label_lr == 1e7 else F32
        t = label
        step = Step(
            logits=make.matrix(make.normal(4, 20), t),
            u=make.matrix(make.normal(4, 20), F32),
            table=make.matrix(make.normal(5, 20), label),
            index=make.index([3, 1, 0, 4] if unique else [3, 1, 3, 3]),
            weight=None,
            scale=1e10 if label_lr == 1e30 else 1.0,
            label_lr=label_lr,
            functional=False,
            unique=unique,
        )

        def check(out: dict, step: Step = step) -> None:
            assert torch.equal(out["table"], step.table)
            assert all(out[name].isnan().all() for name in ("loss", "v", "entropy", "alignment"))

        yield Case(f"label_lr={label_lr} unique={unique}", step.call(), check)


def instance_label_step_rounded() -> Iterator[Case]:
    """Stochastic rounding draws the bits of plain torch. In numbers whose sums are exact, in whatever order they come:
    a power of two columns is alike, the others are too far below to count, and u has few bits."""
    turn = 0
    for dtypes in ((F32, F32), (BF16, BF16), (BF16, F32), (F16, F32)):
        for C, live in ((2, 2), (10, 8), (33, 16), (129, 64), (1001, 256), (5000, 1024)):
            if C > 129 and dtypes[0] != F32:
                continue
            turn += 1
            make = Maker(turn, ("dense", "strided", "misaligned")[turn % 3])
            unique, functional = turn % 2 == 0, turn // 2 % 2 == 0
            n, N = 4, 5
            index = [4, 0, 1, 3] if unique else [4, 0, 4, 2]
            if functional:
                index = [i + (7 << 33) for i in index]
            u = torch.randint(-64, 65, (n, C), generator=make.generator).double() / 64
            columns = torch.randperm(C, generator=make.generator)[:live]
            rows = torch.full((n if functional else N, C), -(2.0**14), dtype=F64)
            rows[:, columns] = 4
            seed, step = 2**62 + turn, turn + 5
            case = Step(
                logits=make.matrix(make.normal(n, C, scale=3), dtypes[0]),
                u=make.matrix(u, dtypes[1]),
                table=make.matrix(rows, BF16),
                index=make.index(index),
                weight=None,
                scale=0.125,
                label_lr=float(live),
                functional=functional,
                unique=unique,
                rounding=(seed, torch.tensor(step) if turn % 3 else step),
            )

            def check(out: dict, case: Step = case, seed: int = seed, step: int = step) -> None:
                rows, index = case.table.double(), case.index
                old = rows if case.functional else rows[index]
                p = old.softmax(-1)
                total = (index.unsqueeze(1) == index).double() @ case.u.double()
                exact = old - float(case.scale) * case.label_lr * p * (total - (p * total).sum(-1, keepdim=True))
                assert torch.equal(exact.float().double(), exact), "the test's own numbers are not exact"
                truth = rng.round_stochastically(exact.float(), seed, step, index)
                got = out["rows_out"] if case.functional else out["table"][index]
                assert torch.equal(got, truth)
                assert case.logits.shape[1] < 10 or not torch.equal(got, exact.to(BF16))

            yield Case(f"{dtypes} C={C} unique={unique} functional={functional}", case.call(), check)


def streamed() -> Iterator[Case]:
    """Rows beyond the registers of a block, walked in chunks by 512 threads."""
    make = Maker(1, "misaligned")
    C = 12301
    args = make.matrix(make.normal(2, C, scale=3), F32), make.matrix(make.normal(2, C, scale=2), F32)
    u = make.matrix(make.normal(2, C), F32)
    index = make.index([1, 1])
    step = Step(args[0], u, args[1], index, None, 0.0625, 400.0, False, False)
    yield Case("instance_label_step", step.call(), step.check)
    loss = Call("instance_loss", n=2, C=C, N=2, logits=args[0], label_logits=args[1], index=index, **results(args[0]))
    yield Case("instance_loss", loss, lambda out: check_loss(out, *args, index, None))


def one_row() -> Iterator[Case]:
    """A wider group than its columns ask for, most threads of which hold none."""
    for C in (257, 1000):
        make = Maker(C, "misaligned")
        args = [make.matrix(make.normal(1, C, scale=scale), F32) for scale in (3, 1, 2)]
        step = Step(*args, make.index([0]), None, 0.0625, 400.0, False, True)
        yield Case(f"instance_label_step C={C}", step.call(), step.check)


# ---------------------------------------------------------------------------------------------------------
# Class labels
# ---------------------------------------------------------------------------------------------------------


def class_loss() -> Iterator[Case]:
    for seed, ((t,), C, layout) in enumerate(cases_over([(F64,), (F32,), (BF16,), (F16,)])):
        make = Maker(seed, layout)
        n = 6
        logits = make.matrix(make.normal(n, C, scale=1e4 if seed % 3 == 0 else 3), t)
        alpha = make.vector(torch.rand(C, generator=make.generator), acc(t))
        targets = make.index([0, C - 1, C, 0, 1, -5])
        alpha[0] = (0.0, 1.0, 0.5)[seed % 3]
        logits[3, C - 1] = (NAN, INF, -INF)[seed % 3]
        if seed % 2:
            alpha[1] = NAN
        weight = make.vector(make.normal(n), acc(t)) if seed % 2 else None
        call = Call(
            "class_loss", n=n, C=C, logits=logits, alpha=alpha, targets=targets, weight=weight, **results(logits)
        )
        yield Case(
            f"{t} C={C} {layout}",
            call,
            lambda out, a=(logits, alpha, targets, weight): check_class_loss(out, *a),
        )


def check_class_loss(
    out: dict, logits: Tensor, alpha: Tensor, targets: Tensor, weight: Tensor | None, also_bad: Tensor | bool = False
) -> None:
    inside = (targets >= 0) & (targets < len(alpha))
    good = inside & finite_rows(logits, alpha[targets.clamp(0, len(alpha) - 1)], weight) & ~torch.as_tensor(also_bad)
    w = None if weight is None else weight[good].double()
    z = logits.double()
    truth = reference.class_loss(z[good], alpha.double(), targets[good], w)
    scale = torch.where(good, z.abs().amax(1), 1.0)
    for name, value, size in zip(
        ("loss", "v", "entropy"), truth, (scale, 1 if w is None else w.abs().max(), 10.0), strict=True
    ):
        assert_close(name, out[name], spread(value, good), size)


def class_label_step() -> Iterator[Case]:
    for seed, ((t, u), C, layout) in enumerate(cases_over(TANGENT_DTYPES)):
        make = Maker(seed, layout)
        n, functional = 9 if C in SMALL else 4, seed % 2 == 1
        logits = make.matrix(make.normal(n, C, scale=3), t)
        tangent = make.matrix(make.normal(n, C), u)
        alpha = torch.rand(C, generator=make.generator, dtype=F64).to(acc(t))
        targets = make.index([0, C - 1, C, 0, 1, 0, C - 1, -1, 0][:n])
        weight = make.vector(make.normal(n), acc(t)) if seed % 3 == 0 else None
        logits[3, 0] = (NAN, INF, -INF)[seed % 3]
        tangent[-3, C - 1] = (INF, NAN, -INF)[seed % 3]
        scale = 0.05 if seed % 2 else torch.tensor(0.05, dtype=F64)
        if seed % 4 == 2 and C > 2:
            alpha[1] = NAN
        out_alpha = torch.full_like(alpha, -77) if functional else alpha
        call = Call(
            "class_label_step", n=n, C=C, alpha_in=alpha, alpha_out=out_alpha, targets=targets, logits=logits,
            u=tangent, weight=weight, scale=scale, label_lr=2.0, workspace=torch.full((2 * n,), -77.0, dtype=acc(t)),
            **results(logits, "alignment"),
        )  # fmt: skip

        def check(out: dict, a: tuple = (logits, tangent, alpha.clone(), targets, weight, scale), C: int = C) -> None:
            z, u, alpha, targets, w, scale = a
            inside = (targets >= 0) & (targets < C)
            good = inside & finite_rows(z, u, alpha[targets.clamp(0, C - 1)], w)
            moved = alpha.double().clone()
            gw = None if w is None else w[good].double()
            args = (targets[good], z[good].double(), u[good].double(), float(scale), 2.0, gw)
            alignment = reference.class_label_step_(moved, *args)[-1]
            assert_close("alpha", out["alpha_out"], moved, 1.0)
            assert_close(
                "alignment", out["alignment"], spread(alignment, good), u.double().nan_to_num(0, 0, 0).abs().max()
            )
            check_class_loss(out, z, out["alpha_out"], targets, w, also_bad=~good)

        yield Case(f"{t} {u} C={C} {layout} functional={functional}", call, check)


def class_label_step_refused() -> Iterator[Case]:
    """A step that is not finite moves no alpha, though the clamp would make it 0 or 1."""
    for label_lr in (INF, NAN):
        make = Maker(3)
        logits, u = (make.matrix(make.normal(3, 12), F32) for _ in range(2))
        alpha = torch.full((12,), 0.25)
        call = Call(
            "class_label_step", n=3, C=12, alpha_in=alpha, alpha_out=alpha, targets=make.index([1, 1, 4]),
            logits=logits, u=u, scale=1.0, label_lr=label_lr, workspace=torch.zeros(6), **results(logits, "alignment"),
        )  # fmt: skip

        def check(out: dict) -> None:
            assert (out["alpha_out"] == 0.25).all()
            assert all(out[name].isnan().all() for name in ("loss", "v", "entropy", "alignment"))

        yield Case(f"label_lr={label_lr}", call, check)


# ---------------------------------------------------------------------------------------------------------
# Empty batches
# ---------------------------------------------------------------------------------------------------------


def empty_batch() -> Iterator[Case]:
    z, table, index = torch.empty(0, 8), torch.randn(4, 8), torch.empty(0, dtype=torch.int64)
    values = torch.empty(0)
    both = {"n": 0, "C": 8, "logits": z}
    step = {"scale": 1.0, "label_lr": 1.0}

    def check(out: dict) -> None:
        for name in ("table", "label_logits"):
            assert name not in out or torch.equal(out[name], table)
        if "alpha_out" in out:
            assert torch.equal(out["alpha_out"], torch.arange(8.0))

    launches = {
        "soft_cross_entropy": {"probs": z, "loss": values, "lse": values},
        "soft_cross_entropy_backward": {"probs": z, "lse": values, "grad": values, "grad_logits": z, "grad_probs": z},
        "soft_cross_entropy_hvp": {"v": z, "out": z},
        "soft_cross_entropy_label_grad": {"v": z, "out": z},
        "instance_loss": {"N": 4, "label_logits": table, "index": index, **results(z)},
        "instance_label_step": {"N": 4, "table": table, "index": index, "u": z, **step, **results(z, "alignment")},
        "class_loss": {"alpha": torch.arange(8.0), "targets": index, **results(z)},
        "class_label_step": {
            "alpha_in": torch.arange(8.0),
            "alpha_out": torch.zeros(8),
            "targets": index,
            "u": z,
            "workspace": values,
            **step,
            **results(z, "alignment"),
        },
    }
    for launcher, fields in launches.items():
        yield Case(launcher, Call(launcher, **both, **fields), check)
    yield Case("row_dot", Call("row_dot", n=0, C=8, a=z, b=z, out=values), check)
