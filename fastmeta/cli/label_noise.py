"""``fastmeta labels noise``: the training labels of a data set with noise, as a file that any tool can train on."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastmeta._text import printable, printable_lines
from fastmeta._trust import trusting_pickles
from fastmeta.cli import find_code_here
from fastmeta.cli.parser import positive_int, seed, wrapped
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


#: options of a data set, as fastmeta train has them; the hash of the data goes by them
_OF_DATA = {
    "given": ("NAME", "Array of npz:PATH or npy:DIR with the labels to corrupt. (default: y_train)"),
    "label_column": ("NAME", "Column of a table with them."),
    "truth_column": ("NAME", "Column of a table with the right labels."),
    "split_column": ("NAME", "Column of a table that says train, meta or test."),
    "root": ("FOLDER", "Of the files of a torchvision set."),
    "superclasses": ("FILE", "A superclass for each class, as JSON."),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, metavar="NAME", help=f"{forms()}.")
    parser.add_argument("--noise", required=True, metavar="NOISE", help="As --noise of fastmeta train.")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="Ends in .npz or .json.")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="Of the noise.")
    for name, (metavar, text) in _OF_DATA.items():
        parser.add_argument(f"--data.{name.replace('_', '-')}", dest=name, metavar=metavar, help=text)
    parser.add_argument(
        "--data.split-seed", dest="split_seed", type=seed, default=0, metavar="N", help="Of the digits' parts."
    )
    parser.add_argument(
        "--data.image-size", dest="image_size", type=positive_int, metavar="N", help="Pixels of image files."
    )
    parser.add_argument(
        "--data.skip-corrupt", dest="skip_corrupt", action="store_true", help="Leave image files out that are broken."
    )
    parser.add_argument("--data.download", dest="download", action="store_true", help="Fetch files that are not there.")
    parser.add_argument("--trust-pickle", action="store_true", help="Load files that are pickles.")


def run(args: argparse.Namespace) -> int:
    NoiseFile.check_path(args.out)
    if parse_dataset(args.dataset).names_code or parse(args.noise).names_code:
        find_code_here()
    names = (*_OF_DATA, "image_size", "skip_corrupt", "download")
    options = {name: value for name in names if (value := getattr(args, name)) is not None}
    with trusting_pickles(args.trust_pickle):
        data = load_dataset(args.dataset, seed=args.split_seed, **options)
        made = NoiseFile.of(data, args.noise, args.seed)
    try:
        write_atomically(args.out, made.packed(args.out.suffix))
    except OSError as error:
        raise InputError(f"cannot write {args.out}: {error.strerror}; name another file") from error
    print(wrapped(printable_lines(in_words(made.given, made.labels, data.class_names))))
    print(wrapped(printable(f"wrote {args.out}: {len(made.labels):,} labels")))
    return 0
