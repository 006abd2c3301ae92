"""Would a hand-written tangent of BatchNorm pay? `python benchmarks/bn_tangent.py --model resnet20 --batch 32`

The forward derivative of relu(batch_norm(x) + residual) needs two passes: one for the reductions mean(t) and
mean(t * xhat), one to apply

    t_out = [w (t - mean(t) - xhat mean(t xhat)) / std + t_w xhat + t_b + t_residual] * (out > 0)

In the step, inductor makes this from torch's own rule for BatchNorm. Here both forms are compiled by inductor, for
every BatchNorm of a model and with the primal beside them, as it stands in the step. `win` is what the two-pass form
would take off the whole compiled step; it is worth a kernel of its own from a tenth on.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastmeta.bench import environment, result_files
from fastmeta.bench.step_problem import Problem, StepConfig
from fastmeta.bench.step_variants import VARIANTS
from fastmeta.cli.allocator import keep_freed_memory
from fastmeta.measure import interleave
from fastmeta.meta.engines import through_inductor, trace

EPS = 1e-5


def primal(x: Tensor, w: Tensor, b: Tensor, residual: Tensor, *tangents: Tensor) -> list[Tensor]:
    return [F.relu(F.batch_norm(x, None, None, w, b, True, eps=EPS) + residual)]


def derived(x: Tensor, w: Tensor, b: Tensor, residual: Tensor, *tangents: Tensor) -> list[Tensor]:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, t) for p, t in zip((x, w, b, residual), tangents, strict=True)]
        out, tangent = forward_ad.unpack_dual(primal(*duals)[0])
    assert tangent is not None
    return [out, tangent]


def two_pass(x: Tensor, w: Tensor, b: Tensor, residual: Tensor, *tangents: Tensor) -> list[Tensor]:
    t, t_w, t_b, t_residual = tangents
    axes = (0, 2, 3)

    def per_channel(v: Tensor) -> Tensor:
        return v[:, None, None]

    var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    over_std = (var + EPS).rsqrt()
    xhat = (x - mean) * over_std
    out = F.relu(xhat * per_channel(w) + per_channel(b) + residual)
    centred = t - t.mean(axes, keepdim=True) - xhat * (t * xhat).mean(axes, keepdim=True)
    tangent = centred * (over_std * per_channel(w)) + xhat * per_channel(t_w) + per_channel(t_b) + t_residual
    return [out, torch.where(out > 0, tangent, 0)]


FORMS = (primal, derived, two_pass)


def shapes(problem: Problem) -> Counter[tuple[int, ...]]:
    """Input shapes of the model's BatchNorms at the train batch."""
    found: Counter[tuple[int, ...]] = Counter()
    model = problem.model()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _m, args, _o: found.update([tuple(args[0].shape)]))
    with torch.no_grad(), problem.precision():
        model(problem.x)
    return found


def inputs(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def image() -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype, memory_format=torch.channels_last)

    def channels() -> Tensor:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return torch.randn(shape[1], generator=generator).to(device, wide)

    return [image(), channels(), channels(), image(), image(), channels(), channels(), image()]


def compiled(function: Callable[..., list[Tensor]], values: list[Tensor]) -> Callable[[], object]:
    run = through_inductor(trace(function, values), values)

    def body() -> None:
        with torch.no_grad():
            run(*values)

    return body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--meta-batch", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    config = StepConfig(args.model, args.batch, args.meta_batch, dtype=args.dtype, device=args.device)
    problem = Problem(config, torch.float32)

    truth = inputs((4, 3, 5, 5), torch.device("cpu"), torch.float64)
    for a, b in zip(derived(*truth), two_pass(*truth), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)

    variant = VARIANTS["fastmeta:full"](problem)
    assert not isinstance(variant, str)
    for _ in range(3):
        variant.step()
    step = interleave({"step": [variant.step]}, problem.device, seconds=args.seconds)["step"].median
    rows = []
    for shape, count in sorted(shapes(problem).items(), reverse=True):
        values = inputs(shape, problem.device, getattr(torch, args.dtype))
        bodies = {f.__name__: [compiled(f, values)] for f in FORMS}
        times = interleave(bodies, problem.device, seconds=args.seconds / 5)
        milliseconds = {name: t.median * 1e3 for name, t in times.items()}
        rows.append({"shape": shape, "layers": count, **milliseconds})

    def total(name: str) -> float:
        return sum(row["layers"] * row[name] for row in rows) / 1e3 / step

    share, win = total("derived") - total("primal"), total("derived") - total("two_pass")
    lines = [[str(r["shape"]), str(r["layers"]), *(f"{r[f.__name__]:.3f}" for f in FORMS)] for r in rows]
    print(result_files.table(["shape", "layers", "primal ms", "+ derived ms", "+ two passes ms"], lines))
    print(f"step {step * 1e3:.1f} ms; tangents of BatchNorm take {share:.1%} of it; two passes would win {win:.1%}")
    if args.json is not None:
        command = f"python benchmarks/bn_tangent.py --model {args.model} --batch {args.batch} --device {args.device}"
        content = {
            "environment": environment.record(problem.device, command),
            "config": dataclasses.asdict(config),
            "step_ms": step * 1e3,
            "rows": rows,
            "tangent_share_of_step": share,
            "win_share_of_step": win,
        }
        result_files.write(args.json, "bn tangent", content)


if __name__ == "__main__":
    main()
