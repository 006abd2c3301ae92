"""``fastmeta labels noise``: the training labels of a data set with noise, as a file that any tool can train on."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastmeta._text import printable, printable_lines
from fastmeta._trust import trusting_pickles
from fastmeta.cli import find_code_here
from fastmeta.cli.parser import seed, wrapped
from fastmeta.data import InputError, load_dataset
from fastmeta.data.noise import NoiseFile, in_words, parse
from fastmeta.data.sources import forms
from fastmeta.data.sources import parse as parse_dataset
from fastmeta.training.rundir import write_atomically

WHAT = "Write the training labels of a data set with noise to a file, to train on here or elsewhere."
EPILOG = """
examples:
  fastmeta labels noise --dataset npz:my.npz --noise pair:0.4 --out noisy.npz
  fastmeta labels noise --dataset digits --noise uniform:0.4 --seed 1 --out noisy.json

A file .npz or .json holds labels (N,), one for each row of the training set in its order; given (N,), what they were;
rate, kind, seed, data_hash and class_names.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, metavar="NAME", help=f"{forms()}.")
    parser.add_argument("--noise", required=True, metavar="NOISE", help="As --noise of fastmeta train.")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="Ends in .npz or .json.")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="Of the noise.")
    parser.add_argument("--data.given", default="y_train", metavar="NAME", help="Array of the labels to corrupt.")
    parser.add_argument("--data.superclasses", metavar="FILE", help="A superclass for each class, as JSON.")
    parser.add_argument("--trust-pickle", action="store_true", help="Load noise file:PATH where it is a pickle.")
    parser.add_argument("--data.root", metavar="FOLDER", help="Of the files of a torchvision set.")
    parser.add_argument("--data.download", action="store_true", help="Fetch its files that are not there.")


def run(args: argparse.Namespace) -> int:
    of = vars(args)
    NoiseFile.check_path(args.out)
    if parse_dataset(args.dataset).names_code or parse(args.noise).names_code:
        find_code_here()
    data = load_dataset(
        args.dataset,
        seed=args.seed,
        given=of["data.given"],
        root=of["data.root"],
        superclasses=of["data.superclasses"],
        download=of["data.download"],
    )
    with trusting_pickles(args.trust_pickle):
        made = NoiseFile.of(data, args.noise, args.seed)
    try:
        write_atomically(args.out, made.packed(args.out.suffix))
    except OSError as error:
        raise InputError(f"cannot write {args.out}: {error.strerror}; name another file") from error
    print(wrapped(printable_lines(in_words(made.given, made.labels, data.class_names))))
    print(wrapped(printable(f"wrote {args.out}: {len(made.labels):,} labels")))
    return 0
