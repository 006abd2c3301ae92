#!/bin/sh
# Checks of the kernels that need a GPU: benchmarks/gpu_checks.sh [FOLDER for the logs] [CHECK ...]
#
# CHECK is `tests`, all tests that are marked `cuda`, or a tool of compute-sanitizer, which watches the tests of every
# operation in every geometry: memcheck (addresses), racecheck (shared memory), initcheck (memory that nobody wrote),
# synccheck (barriers). Default: all five. A tool counts what it reports in fastmeta's own kernels. Prints one line for
# each; exit code 1 where one of them failed or ran longer than LIMIT, 2 where the checks cannot run.
#
#   PYTHON=...             the interpreter (default: .venv/bin/python, else python3)
#   LIMIT=...              seconds for each check (default: 540)
#   WORKERS=...            processes that the tests run in (default: 8), with one thread each
#   FASTMETA_SANITIZER=... compute-sanitizer, where it is neither on PATH nor in $CUDA_HOME/bin nor in /usr/local/cuda/bin
set -u
cd "$(dirname "$0")/.." || exit 2
folder=${1:-build/gpu-checks}
[ $# -gt 0 ] && shift
[ $# -eq 0 ] && set -- tests memcheck racecheck initcheck synccheck
limit=${LIMIT:-540}
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
for place in "$(command -v compute-sanitizer)" "${CUDA_HOME:-}/bin/compute-sanitizer" \
    /usr/local/cuda/bin/compute-sanitizer /usr/local/cuda/compute-sanitizer/compute-sanitizer; do
    [ -z "$sanitizer" ] && [ -x "$place" ] && sanitizer=$place
done
mkdir -p "$folder" || exit 2
failed=0
# each kernel in each geometry; the other tests launch the same ones
watched="every_element or repeated_rows or kernels_draw or bits_are_those or (lookahead_update and truth)"

report() { # name, whether it passed (0), what to look at
    if [ "$2" -eq 0 ]; then
        echo "$1: passed"
    else
        [ "$2" -eq 124 ] && echo "$1: stopped after $limit s (LIMIT)"
        echo "$1: FAILED, see $3"
        failed=1
    fi
}

for check; do
    case $check in
    tests)
        # several at once where pytest-xdist is there: most of the time goes into compilers and float64 on the host
        workers=
        "$python" -c 'import xdist' 2>/dev/null && workers="-n ${WORKERS:-8}"
        # shellcheck disable=SC2086  # two words or none
        OMP_NUM_THREADS=1 timeout -s INT -k 10 "$limit" "$python" -m pytest -m cuda --durations=10 $workers tests >"$folder/tests.log" 2>&1
        status=$?
        tail -n 1 "$folder/tests.log"
        report tests $status "$folder/tests.log"
        ;;
    memcheck | racecheck | initcheck | synccheck)
        if [ -z "$sanitizer" ]; then
            echo "gpu_checks: no compute-sanitizer for $check (PATH, \$CUDA_HOME/bin, /usr/local/cuda); it comes with the" \
                "CUDA toolkit, or name it in FASTMETA_SANITIZER" >&2
            exit 2
        fi
        # initcheck has to see who wrote the memory, so it watches torch's kernels as well
        only="--kernel-name kns=fastmeta"
        [ "$check" = initcheck ] && only=
        # without torch's cache every tensor is an allocation of its own, whose end the tool knows
        # shellcheck disable=SC2086  # $only is two words or none
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -s INT -k 10 "$limit" "$sanitizer" --tool "$check" $only \
            --target-processes application-only --log-file "$folder/$check.log" "$python" -m pytest -m cuda \
            tests/ops -k "$watched" >"$folder/$check-tests.log" 2>&1
        status=$?
        if [ ! -f "$folder/$check.log" ]; then
            report "$check" 1 "$folder/$check-tests.log (the tool has not run)"
            continue
        fi
        tail -n 1 "$folder/$check-tests.log"
        found=$(grep -c 'fastmeta' "$folder/$check.log")
        echo "$check: $found lines of the log name a kernel of fastmeta"
        [ "$found" -ne 0 ] && [ $status -eq 0 ] && status=1
        report "$check" $status "$folder/$check.log and $folder/$check-tests.log"
        ;;
    *)
        echo "gpu_checks: unknown check '$check': expected tests, memcheck, racecheck, initcheck or synccheck" >&2
        exit 2
        ;;
    esac
done
exit $failed
