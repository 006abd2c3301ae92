#!/bin/sh
# All that needs a GPU, in parts: benchmarks/gpu.sh [FOLDER] [PART ...]
#
# PART, the most telling first (default: all but build and the paper's, in this order):
#   build      the extension in place, with its CUDA half
#   tests      all tests marked cuda (gpu_checks.sh)
#   ops        the operations that goals speak of, in all sizes; look-ahead and images
#   resnet18   steps at 128/256, bfloat16; likewise wrn28_10
#   memcheck, racecheck, synccheck, initcheck    tools of compute-sanitizer over the operations (gpu_checks.sh)
#   counters   what the hardware counts of them, by ncu; kernels: those of ResNet-18's steps
#   others     the other operations
#   approx     what approximations cost; bn_tangent: a tangent of BatchNorm by hand
#   stores     label tables on the card, on the host and in a file, with and without prefetch
#   vgg16_bn, vit_tiny, resnet18_512, vgg16_bn_512, wrn28_10_512, vit_tiny_512    further steps
#   table6, table1, table3 and the like    of the paper at scale short, from the files CIFAR10=... and CIFAR100=...
#              (npz); their runs lie in runs/paper-short, and the same part goes on where LIMIT has stopped it
#
# A benchmark's JSON goes to FOLDER (default: benchmarks/results), the log of each part to FOLDER/logs. A part that fails,
# or runs longer than LIMIT, does not stop the others; exit code 1 where one did, 2 for an unknown one.
#
#   PYTHON=...   the interpreter (default: .venv/bin/python, else python3)
#   LIMIT=...    seconds for each part (default: 560); a benchmark begins nothing new after two thirds of them
#   DEVICE=cpu   the same commands on a CPU at the size of QUICK, to try the script
#   QUICK=1      few rounds of one small model
set -u
cd "$(dirname "$0")/.." || exit 2
folder=${1:-benchmarks/results}
[ $# -gt 0 ] && shift
limit=${LIMIT:-560}
device=${DEVICE:-cuda}
python=${PYTHON:-}
if [ -z "$python" ]; then
    python=python3
    [ -x .venv/bin/python ] && python=.venv/bin/python
fi
mkdir -p "$folder/logs" || exit 2
failed=0
export PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" # a build in place need not be installed

if [ $# -eq 0 ] && [ -n "${QUICK:-}" ]; then
    set -- ops mlp approx stores
    [ "$device" = cuda ] && set -- tests "$@"
elif [ $# -eq 0 ]; then
    set -- tests ops resnet18 wrn28_10 memcheck racecheck synccheck initcheck counters kernels others approx bn_tangent stores \
        vgg16_bn vit_tiny resnet18_512 vgg16_bn_512 wrn28_10_512 vit_tiny_512
fi

run() { # command ...
    start=$(date +%s)
    timeout -s INT -k 10 "$limit" "$@" >"$folder/logs/$part.log" 2>&1
    status=$?
    seconds=$(($(date +%s) - start))
    if [ $status -eq 0 ]; then
        echo "$part: done in $seconds s"
    else
        echo "$part: FAILED with $status after $seconds s, see $folder/logs/$part.log; it ends"
        tail -n 3 "$folder/logs/$part.log"
        failed=1
    fi
}

bench() { # ops|step|approx, options ...
    run "$python" benchmarks/goals.py "$@" --device "$device" --json "$folder/$part-$device.json"
}

begin="--limit $((limit * 2 / 3))"
# in the order of their worth, for the last ones may not be begun
goals="sgd sgd:captured fastmeta:full reference sgd:compiled-captured reference:captured fastmeta"
more="fastmeta:delayed-full fastmeta:last:1-full fastmeta:every:4-full sgd:compiled fastmeta:trace fastmeta:one-graph"
# shellcheck disable=SC2086  # words of options
for part; do
    case $part in
    build) FASTMETA_CUDA=1 run "$python" setup.py build_ext --inplace ;;
    tests | memcheck | racecheck | synccheck | initcheck)
        PYTHON=$python LIMIT=$((limit - 10)) run benchmarks/gpu_checks.sh "$folder/logs/checks" "$part"
        ;;
    ops)
        if [ -n "${QUICK:-}" ]; then
            bench ops --sizes 64x10 --no-compile --seconds 0.2
        else
            bench ops --ops instance_label_step_ instance_loss lookahead_update load_images --seconds 0.3 $begin
        fi
        ;;
    others)
        bench ops --ops class_label_step_ class_loss soft_cross_entropy soft_cross_entropy_hvp \
            soft_cross_entropy_label_grad row_dot --no-compile --seconds 0.2 $begin
        ;;
    counters)
        # shellcheck disable=SC2046  # words of options
        run ncu --clock-control none --csv --page raw --log-file "$folder/logs/counters.csv" -k regex:instance_ \
            $("$python" benchmarks/op_counters.py sections) "$python" benchmarks/op_counters.py launch
        "$python" benchmarks/op_counters.py read "$folder/logs/counters.csv" --json "$folder/op-counters-cuda.json"
        ;;
    kernels) run "$python" benchmarks/step_kernels.py --json "$folder/step-kernels-cuda.json" ;;
    mlp) bench step --model mlp --batch 8 --meta-batch 16 --classes 100 --rounds 1 --variants default ;;
    resnet18 | wrn28_10 | vgg16_bn | vit_tiny)
        bench step --model "$part" --batch 128 --meta-batch 256 --classes 100 --dtype bfloat16 --variants $goals $more \
            autograd $begin
        ;;
    *_512)
        bench step --model "${part%_512}" --batch 512 --meta-batch 512 --classes 100 --dtype bfloat16 --variants $goals \
            $more autograd $begin
        ;;
    approx)
        if [ -n "${QUICK:-}" ]; then
            bench approx --models mlp --seconds 1
        else
            bench approx --models resnet18 --batch 128 --meta-batch 256
        fi
        ;;
    bn_tangent)
        run "$python" benchmarks/bn_tangent.py --model resnet18 --batch 128 --meta-batch 256 --device "$device" \
            --dtype bfloat16 --json "$folder/bn_tangent-$device.json"
        ;;
    stores)
        run "$python" -m fastmeta bench scale --part stores --seconds "$([ -n "${QUICK:-}" ] && echo 2 || echo 60)" --device "$device" \
            --json "$folder/scale-stores-$device.json"
        ;;
    table[1-8] | figure[2-4] | claims)
        if [ -n "${QUICK:-}" ]; then
            run "$python" -m fastmeta reproduce "$part" --scale smoke --out "$folder/paper-smoke"
        else
            run "$python" -m fastmeta reproduce "$part" --scale short --out runs/paper-short \
                ${CIFAR10:+--data "$CIFAR10"} ${CIFAR100:+--data "$CIFAR100"}
            for file in result.json table.md report.html; do
                [ -f "runs/paper-short/$part/$file" ] && cp "runs/paper-short/$part/$file" "$folder/$part-short-$file"
            done
        fi
        ;;
    *)
        echo "gpu.sh: unknown part '$part'" >&2
        exit 2
        ;;
    esac
done
exit $failed
