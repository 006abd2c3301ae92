"""``fastmeta check``: is the meta-gradient of a model right, which way makes it, what does it cost?"""

from __future__ import annotations

import argparse

import torch

EPILOG = """
examples:
  fastmeta check --model torchvision:resnet50
  fastmeta check --model resnet20 --classes 100 --batch 32 --meta-batch 64
  fastmeta check --model my_package.nets:build --input-shape 1,28,28     # build(num_classes=10) -> nn.Module

exit code: 0 right, 1 a wrong gradient, 2 wrong arguments
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="fastmeta check",
        description="Hold every way of making the label gradient of a model against plain autograd, in float64.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", required=True, help="a built-in name, torchvision:NAME, or package.module:factory")
    p.add_argument("--classes", type=int, default=10, help="number of classes (10)")
    p.add_argument("--input-shape", help="of one sample (what the model is made for, else 3,32,32)")
    p.add_argument("--batch", type=int, help="train batch (8; 2 for torchvision's large images)")
    p.add_argument("--meta-batch", type=int, help="meta batch (as --batch)")
    p.add_argument("--labels", choices=("instance", "class"), default="instance", help="label family (instance)")
    p.add_argument("--lr", type=float, default=0.1, help="look-ahead learning rate (0.1)")
    p.add_argument("--tangent", default="auto,reverse,forward,difference", help="ways to try, comma-separated (all)")
    p.add_argument("--eval", action="store_true", help="check the model in eval mode (train mode)")
    p.add_argument("--no-timing", action="store_true", help="errors only, no milliseconds and memory")
    p.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    p.add_argument("--seed", type=int, default=0)
    return p


def main(argv: list[str] | None = None) -> int:
    import fastmeta
    from fastmeta import models

    p = parser()
    args = p.parse_args(argv)
    try:
        given = args.input_shape
        shape = tuple(map(int, given.split(","))) if given else models.default_input_shape(args.model)
        args.batch = args.batch or (2 if args.model.startswith("torchvision:") else 8)
        args.meta_batch = args.meta_batch or args.batch
        for name in ("classes", "batch", "meta_batch"):
            if getattr(args, name) < (2 if name == "classes" else 1):
                raise ValueError(f"--{name.replace('_', '-')} is too small: {getattr(args, name)}")
        torch.manual_seed(args.seed)
        model = models.build(args.model, num_classes=args.classes, input_shape=shape).to(args.device)
        model.train(not args.eval)
    except (ValueError, RuntimeError, ImportError) as error:
        p.exit(2, f"fastmeta check: {error}\n")
    n, m, c = args.batch, args.meta_batch, args.classes
    targets = torch.randint(c, (n,), device=args.device)
    family = fastmeta.InstanceLabels if args.labels == "instance" else fastmeta.ClassLabels
    x, x_meta = (torch.randn(k, *shape, device=args.device) for k in (n, m))
    try:
        report = fastmeta.check(
            model,
            family(targets, c, 0.9),
            (x, torch.arange(n, device=args.device)),
            (x_meta, torch.randint(c, (m,), device=args.device)),
            args.lr,
            tangents=tuple(args.tangent.split(",")),
            timing=not args.no_timing,
        )
    except ValueError as error:
        p.exit(2, f"fastmeta check: {error}\n")
    print(f"{args.model}, {n} train and {m} meta samples of shape {shape}, {c} classes, {args.device}")
    print(report)
    return 0 if report.ok else 1
