"""``fastmeta labels apply``: the data of a run with the learned labels in place of the given ones."""

from __future__ import annotations

import argparse

from fastmeta._text import printable
from fastmeta.cli.parser import wrapped
from fastmeta.export import apply

WHAT = "Write the data of a finished run with the learned labels, in their own format."
EPILOG = """
examples:
  fastmeta labels apply runs/my-run --to corrected.npz

Of an npz file all arrays stay as they are, but that of the given labels, which becomes y_given. Of a table, csv or
parquet, the cells of the label column change. Of a folder of images there is a new folder, in which each image lies
with its learned class, as a hard link: test/ and meta/ are as they were. A folder of .npy files, npy:DIR, is as an npz
file, with hard links to the files that stay.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="Directory of a finished run.")
    parser.add_argument(
        "--to", required=True, metavar="PATH", help="A file, or of a folder a folder, that is not there yet."
    )
    parser.add_argument("--copy", action="store_true", help="Of a folder, copies in place of hard links.")
    parser.add_argument("--force", action="store_true", help="Also labels that canaries find worse than given ones.")


def run(args: argparse.Namespace) -> int:
    for line in apply(args.run, args.to, force=args.force, copy=args.copy).lines:
        print(wrapped(printable(line)))
    return 0
