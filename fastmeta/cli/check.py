"""``fastmeta check``: is the meta-gradient of a model right, which way makes it, what does it cost?"""

from __future__ import annotations

import math
import warnings
from typing import get_args

import torch

from fastmeta import models
from fastmeta._memory import check_room
from fastmeta._text import printable, printable_lines, reason
from fastmeta.cli import find_code_here
from fastmeta.cli.parser import Parser, at_least, integers, positive_float, positive_int, seed, wrapped
from fastmeta.meta.tangents import TangentChoice
from fastmeta.training.device import pick_device

EPILOG = """
examples:
  fastmeta check --model torchvision:resnet50
  fastmeta check --model resnet20 --classes 100 --batch 32 --meta-batch 64
  fastmeta check --model my_package.nets:build --input-shape 1,28,28
                 (which is called as build(num_classes=10) and returns a module)

exit code: 0 right, 1 a wrong gradient or none that can be had, 2 wrong arguments
"""


def parser() -> Parser:
    p = Parser(
        prog="fastmeta check",
        description="Hold every way of making the label gradient of a model against plain autograd, in float64.",
        epilog=EPILOG,
    )
    names = f"{', '.join(models.NAMES)}, {models.OTHERS}."
    p.add_argument("--model", required=True, metavar="NAME", help=names)
    p.add_argument("--classes", type=at_least(2, models.MOST), default=10, metavar="C", help="Number of classes.")
    p.add_argument("--input-shape", type=integers(","), metavar="C,H,W", help="Of one sample. (default: by model)")
    p.add_argument(
        "--batch", type=positive_int, metavar="n", help="Train samples. (default: 8; 2 for torchvision and timm)"
    )
    p.add_argument("--meta-batch", type=positive_int, metavar="m", help="Clean samples. (default: as --batch)")
    p.add_argument("--labels", choices=("instance", "class"), default="instance", help="Family of the labels.")
    p.add_argument("--lr", type=positive_float, default=0.1, metavar="NUMBER", help="Learning rate of the look-ahead.")
    p.add_argument(
        "--tangent",
        default=",".join(get_args(TangentChoice)),
        metavar="WAYS",
        help="Ways of making the logit tangent that are tried.",
    )
    p.add_argument("--eval", action="store_true", help="The model in evaluation mode, not in the mode it is made in.")
    p.add_argument("--no-timing", action="store_true", help="Errors alone, no milliseconds and memory.")
    p.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu, cuda or cuda:N.")
    p.add_argument("--seed", type=seed, default=0, metavar="N", help="Of weights and data.")
    return p


def main(argv: list[str]) -> int:
    import fastmeta

    p = parser()
    args = p.parse(argv)
    if models.names_code(args.model):
        find_code_here()
    n = args.batch or (8 if models.zoo_of(args.model) is None else 2)
    m, c = args.meta_batch or n, args.classes
    shape = args.input_shape or models.default_input_shape(args.model)
    try:
        device = pick_device(args.device)
        # inputs, their double copy, logits and label rows; activations come on top
        if device.type == "cpu":
            check_room(12 * (n + m) * (math.prod(shape) + 3 * c), f"batches of {n:,} and {m:,}")
        torch.manual_seed(args.seed)
        model = models.build(args.model, num_classes=c, input_shape=shape).to(device)
        if args.eval:  # otherwise in the modes that it was made in
            model.eval()
        targets = torch.randint(c, (n,), device=device)
        family = fastmeta.InstanceLabels if args.labels == "instance" else fastmeta.ClassLabels
        x, x_meta = (torch.randn(k, *shape, device=device) for k in (n, m))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the label gradient is inexact")  # the report says so
            report = fastmeta.check(
                model,
                family(targets, c, 0.9),
                (x, torch.arange(n, device=device)),
                (x_meta, torch.randint(c, (m,), device=device)),
                args.lr,
                tangents=tuple(args.tangent.split(",")),
                timing=not args.no_timing,
            )
    except (ValueError, ImportError) as error:
        p.error(str(error))
    except (RuntimeError, MemoryError) as error:  # torch has no kind of its own for memory that a CPU has not
        p.error(f"{args.model} cannot be checked with batches of {n:,} and {m:,}: {reason(error)}")
    print(wrapped(printable(f"{args.model}, {n} train and {m} meta samples of shape {shape}, {c} classes, {device}")))
    print(wrapped(printable_lines(report), "  "))
    return 0 if report.ok else 1
