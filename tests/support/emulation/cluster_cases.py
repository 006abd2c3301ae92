"""Rows that a cluster of blocks shares, and the same rows on a device that has no clusters."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.emulation.cases import BF16, F32, INF, NAN, Case, Maker, Step, acc, check_loss, results
from tests.support.emulation.emulator import Call

# columns of the geometries of 2, 4 and 8 blocks, the first two with a head and a tail, the last of full capacity
TWO, FOUR, EIGHT = 12301, 16387, 65536


def instance_loss_in_clusters() -> Iterator[Case]:
    for seed, (t, label, C) in enumerate([(F32, F32, TWO), (BF16, F32, FOUR), (BF16, BF16, EIGHT)]):
        make = Maker(seed, "dense" if C == EIGHT else "misaligned")
        n = 1 if C == EIGHT else 3
        logits = make.matrix(make.normal(n, C, scale=3), t)
        table = make.matrix(make.normal(2, C, scale=2), label)
        index = make.index([1, 0, 2][:n])  # the last is out of range
        weight = make.vector(make.normal(n), acc(t))
        if seed == 1:
            logits[0, C - 1] = NAN
        call = Call(
            "instance_loss", n=n, C=C, N=2, logits=logits, label_logits=table, index=index, weight=weight,
            **results(logits),
        )  # fmt: skip
        yield Case(f"{t} {label} C={C}", call, lambda out, a=(logits, table, index, weight): check_loss(out, *a))


def instance_label_step_in_clusters() -> Iterator[Case]:
    kinds = [(F32, F32, F32, TWO), (BF16, F32, F32, FOUR), (F32, F32, BF16, TWO), (F32, F32, F32, EIGHT)]
    for seed, (t, u, label, C) in enumerate(kinds):
        make = Maker(seed, "dense" if C == EIGHT else ("misaligned", "strided")[seed % 2])
        n, functional = 1 if C == EIGHT else 3, seed == 1
        step = Step(
            logits=make.matrix(make.normal(n, C, scale=3), t),
            u=make.matrix(make.normal(n, C), u),
            table=make.matrix(make.normal(max(n, 2), C, scale=2), label),
            index=make.index(([7, 5, 9] if functional else [1, 0, 3])[:n]),  # the last is out of range
            weight=make.vector(make.normal(n), acc(t)) if seed else None,
            scale=0.0625,
            label_lr=400.0,
            functional=functional,
            unique=True,
        )
        if seed == 2:
            step.u[0, C // 2] = INF
        yield Case(f"{t} {u} {label} C={C} functional={functional}", step.call(), step.check)
