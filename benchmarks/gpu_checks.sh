#!/bin/sh
# Every check of the kernels that needs a GPU, in one command: benchmarks/gpu_checks.sh [FOLDER for the logs]
#
# First all tests that are marked `cuda`, then those of the operations once more under each tool of compute-sanitizer:
# memcheck (addresses), racecheck (shared memory), initcheck (memory that nobody wrote), synccheck (barriers). A tool
# counts what it reports in fastmeta's own kernels. Prints one line for each run; exit code 1 where one of them failed,
# 2 where the checks cannot run.
#
#   PYTHON=...             the interpreter (default: .venv/bin/python, else python3)
#   FASTMETA_SANITIZER=... compute-sanitizer, where it is neither on PATH nor in $CUDA_HOME/bin nor in /usr/local/cuda/bin
set -u
cd "$(dirname "$0")/.." || exit 2
folder=${1:-build/gpu-checks}
python=${PYTHON:-}
if [ -z "$python" ]; then
    python=python3
    [ -x .venv/bin/python ] && python=.venv/bin/python
fi

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu_checks: $python sees no CUDA device (torch.cuda.is_available() is False); run this on a machine with a GPU" >&2
    exit 2
fi
sanitizer=${FASTMETA_SANITIZER:-}
for place in "$(command -v compute-sanitizer)" "${CUDA_HOME:-}/bin/compute-sanitizer" /usr/local/cuda/bin/compute-sanitizer; do
    [ -z "$sanitizer" ] && [ -x "$place" ] && sanitizer=$place
done
if [ -z "$sanitizer" ]; then
    echo "gpu_checks: no compute-sanitizer (PATH, \$CUDA_HOME/bin, /usr/local/cuda/bin); it comes with the CUDA toolkit," \
        "or name it in FASTMETA_SANITIZER" >&2
    exit 2
fi
mkdir -p "$folder" || exit 2
failed=0

report() { # name, whether it passed (0), what to look at
    if [ "$2" -eq 0 ]; then
        echo "$1: passed"
    else
        echo "$1: FAILED, see $3"
        failed=1
    fi
}

"$python" -m pytest -m cuda tests >"$folder/tests.log" 2>&1
report tests $? "$folder/tests.log"

for tool in memcheck racecheck initcheck synccheck; do
    # initcheck has to see who wrote the memory, so it watches torch's kernels as well
    only="--kernel-name kns=fastmeta"
    [ $tool = initcheck ] && only=
    # without torch's cache every tensor is an allocation of its own, whose end the tool knows; tests left out: one needs
    # 10 GB, one breaks its device on purpose, compilers run for minutes here
    # shellcheck disable=SC2086  # $only is two words or none
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool $tool $only --target-processes application-only \
        --log-file "$folder/$tool.log" "$python" -m pytest -m cuda tests/ops \
        -k "not beyond_32_bits and not launch_error and not compile and not graph" >"$folder/$tool-tests.log" 2>&1
    status=$?
    if [ ! -f "$folder/$tool.log" ]; then
        report $tool 1 "$folder/$tool-tests.log (the tool has not run)"
        continue
    fi
    found=$(grep -c 'fastmeta' "$folder/$tool.log")
    echo "$tool: $found lines of the log name a kernel of fastmeta"
    [ "$found" -eq 0 ] && [ $status -eq 0 ]
    report $tool $? "$folder/$tool.log and $folder/$tool-tests.log"
done
exit $failed
