"""The paper's tables and figures as commands: which runs each takes, its published numbers, and what comes of it here.

`artefact.py` says how to add one. ``fastmeta reproduce table6 --scale smoke --out DIR`` runs it.
"""

from fastmeta.paper.artefact import Artefact, Cell, Figure, Found, Reading, Row
from fastmeta.paper.claims import Claim, beyond, higher
from fastmeta.paper.published import Number, published
from fastmeta.paper.registry import ARTEFACTS, artefact
from fastmeta.paper.scale import Scale
from fastmeta.paper.wanted import Wanted

__all__ = [
    "ARTEFACTS",
    "Artefact",
    "Cell",
    "Claim",
    "Figure",
    "Found",
    "Number",
    "Reading",
    "Row",
    "Scale",
    "Wanted",
    "artefact",
    "beyond",
    "higher",
    "published",
]
