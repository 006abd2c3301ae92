"""``python -m fastmeta`` is the ``fastmeta`` command."""

import sys

from fastmeta.cli import main

if __name__ == "__main__":
    sys.exit(main())
