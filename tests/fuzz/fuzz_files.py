"""Coverage-guided fuzzing of one kind of file with atheris (`pip install fastmeta[fuzz]`):

    python tests/fuzz/fuzz_files.py npz|npy|npy_folder|toml|summary [-max_total_time=300] [other flags of libFuzzer]

It starts from the corpus of attacks and stops at the first bytes that raise anything but an InputError in one line;
add those to `corpus.py`. What it finds interesting on its way is kept in build/fuzz/NAME.
"""

import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
READERS = ["fastmeta.data", "fastmeta.training", "zipfile", "tomllib", "json", "numpy.lib._format_impl"]

with atheris.instrument_imports(include=READERS):
    from tests.support.fuzz.targets import Targets, judge


def main() -> None:
    name, flags = sys.argv[1], sys.argv[2:]
    targets = Targets(Path(tempfile.mkdtemp(prefix="fastmeta-fuzz-")))
    target = targets.by_name[name]
    kept = ROOT / "build" / "fuzz" / name
    kept.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(targets.seeds(name)):
        (kept / f"seed-{number:04}").write_bytes(content)
    limits = ["-rss_limit_mb=4096", "-malloc_limit_mb=512", "-timeout=20", "-max_len=20000"]
    atheris.Setup([sys.argv[0], *limits, *flags, str(kept)], lambda content: judge(target, content) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
