"""The same step as others take it: by their library where it is installed, or by their idea in a few lines of ours.

Each idea has a file that is named after its source, with the equation; no code of others is copied.
"""

from fastmeta.bench.peers import autograd, betty_difference, compiled_reference, emlc_jvp, libraries
from fastmeta.bench.peers.installed import liger_cross_entropy, load

__all__ = ["autograd", "betty_difference", "compiled_reference", "emlc_jvp", "libraries", "liger_cross_entropy", "load"]
