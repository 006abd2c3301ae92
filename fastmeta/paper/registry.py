"""All artefacts by their name. An artefact is imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib

from fastmeta._text import shown
from fastmeta.data import InputError
from fastmeta.paper.artefact import Artefact

#: name -> class in the module of that name, or module:class
ARTEFACTS: dict[str, str] = {
    "table1": "Table1",
    "table2": "Table2",
    "table3": "Table3",
    "table4": "Table4",
    "table5": "Table5",
    "table6": "Table6",
    "table7": "Table7",
    "table8": "Table8",
    "figure2": "Figure2",
    "figure3": "Figure3",
    "figure4": "Figure4",
    "claims": "claims_in_words:ClaimsInWords",
}


def artefact(name: str) -> Artefact:
    """InputError for a name that there is not."""
    if name not in ARTEFACTS:
        close = difflib.get_close_matches(str(name)[:40].lower(), ARTEFACTS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(ARTEFACTS)}"
        raise InputError(f"the paper has no artefact {shown(name)}; {hint}")
    module, _, kind = ARTEFACTS[name].rpartition(":")
    found: Artefact = getattr(importlib.import_module(f"fastmeta.paper.{module or name}"), kind)()
    return found
