"""Names that functions read, by their bytecode, and what is known of the modules that they are in."""

from __future__ import annotations

import dis
import functools
import sys
import types
from typing import Any, NamedTuple

#: modules whose functions do what they did, whatever is assigned to
_TRUSTED = {*sys.stdlib_module_names, "torch", "numpy", "fastmeta", "functorch", "triton"}
#: functions that say another thing in every call, by module
FICKLE = {
    "time": {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time"},
    "os": {"urandom", "getrandom", "times", "read", "popen"},
    "secrets": {"token_bytes", "token_hex", "randbits", "randbelow", "choice", "SystemRandom"},
    "random": {"SystemRandom"},
    "uuid": {"uuid1", "uuid4"},
    "datetime": {"now", "utcnow", "today"},
    "builtins": {"open", "input"},
}


class CodeNames(NamedTuple):
    """Names that a function and the functions inside it read."""

    globals: frozenset[str]
    attributes: frozenset[str]


@functools.lru_cache(maxsize=4096)
def names_in(code: types.CodeType) -> CodeNames:
    found, attributes = set(), set()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found.add(step.argval)
        elif step.opname.startswith(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM")):
            attributes.add(step.argval)
        elif isinstance(step.argval, str) and step.opname == "LOAD_CONST":
            attributes.add(step.argval)  # of getattr
        elif step.opname == "IMPORT_NAME":
            found.add(f"import {step.argval}")
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            deeper = names_in(inner)
            found |= deeper.globals
            attributes |= deeper.attributes
    return CodeNames(frozenset(found), frozenset(attributes))


def is_trusted(module: Any) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in _TRUSTED
