#!/bin/sh
# Everything that needs a GPU, in one command: benchmarks/gpu.sh [FOLDER]
#
# First the checks (gpu_checks.sh: tests, compute-sanitizer), then every benchmark whose figures the project quotes, with
# the project's goals beside them. JSON goes to FOLDER (default: benchmarks/results), a log of each run to FOLDER/logs. A
# run that fails does not stop the others; exit code 1 where one did.
#
#   PYTHON=...   the interpreter (default: .venv/bin/python, else python3)
#   DEVICE=cpu   the same commands on a CPU at the size of QUICK, to try the script
#   QUICK=1      few rounds of one small model
set -u
cd "$(dirname "$0")/.." || exit 2
folder=${1:-benchmarks/results}
device=${DEVICE:-cuda}
python=${PYTHON:-}
if [ -z "$python" ]; then
    python=python3
    [ -x .venv/bin/python ] && python=.venv/bin/python
fi
mkdir -p "$folder/logs" || exit 2
failed=0

run() { # name, command ...
    name=$1
    shift
    if "$@" >"$folder/logs/$name.log" 2>&1; then
        echo "$name: done"
    else
        echo "$name: FAILED, see $folder/logs/$name.log"
        failed=1
    fi
}

bench() { "$python" -m fastmeta bench "$@"; }

if [ "$device" = cuda ]; then
    PYTHON=$python run checks benchmarks/gpu_checks.sh "$folder/logs/checks"
fi
if [ -n "${QUICK:-}" ]; then
    ops="--sizes 64x10 --no-compile --seconds 0.2" models=mlp sizes="8-16" dtype=float32 steps="--rounds 1 --variants default"
    approx="--models mlp --seconds 1"
else
    ops="" models="resnet18 vgg16_bn wrn28_10 vit_tiny" sizes="128-256 512-512" dtype=bfloat16
    steps="--variants goals autograd" approx="--models resnet18 --batch 128 --meta-batch 256"
fi
# shellcheck disable=SC2086  # words of options
run ops bench ops --device "$device" $ops --json "$folder/ops-$device.json"
for model in $models; do
    for size in $sizes; do
        # shellcheck disable=SC2086
        run "step-$model-$size" bench step --device "$device" --dtype $dtype --model "$model" --batch "${size%-*}" \
            --meta-batch "${size#*-}" --classes 100 $steps --json "$folder/step-$model-$size-$device.json"
    done
done
# shellcheck disable=SC2086
run approx bench approx --device "$device" $approx --json "$folder/approx-$device.json"
if [ -z "${QUICK:-}" ]; then
    run bn-tangent "$python" benchmarks/bn_tangent.py --model resnet18 --batch 128 --meta-batch 256 --device "$device" \
        --dtype $dtype --json "$folder/bn-tangent-$device.json"
fi
exit $failed
