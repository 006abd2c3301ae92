"""``fastmeta labels export``: the labels of a finished run in a form that another tool reads."""

from __future__ import annotations

import argparse

from fastmeta._text import printable
from fastmeta.cli.parser import positive_int, wrapped
from fastmeta.export import FORMATS, export

WHAT = "Write the learned labels of a finished run for another tool."
EPILOG = f"""
formats:
{chr(10).join(f"  {name:<12} {chosen.what}" for name, chosen in FORMATS.items())}

examples:
  fastmeta labels export runs/my-run --format cleanlab
  fastmeta labels export runs/my-run --format labelstudio --top 200 --out tasks.json

Learned labels are in-sample: the network was trained on these very rows. Rows are those that were trained on, in the
order of the data set; row is the number of a sample there. Canaries are in no file.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="Directory of a finished run.")
    parser.add_argument("--format", required=True, choices=FORMATS, help="See below.")
    parser.add_argument("--out", metavar="PATH", help="File, or folder for hf. (default: in RUN/export)")
    help_of_top = "Only the K most suspicious rows. (default: 100 for labelstudio, else all)"
    parser.add_argument("--top", type=positive_int, metavar="K", help=help_of_top)
    parser.add_argument("--force", action="store_true", help="Also labels that canaries find worse than given ones.")


def run(args: argparse.Namespace) -> int:
    for line in export(args.run, args.format, args.out, top=args.top, force=args.force).lines:
        print(wrapped(printable(line)))
    return 0
