#!/usr/bin/env bash
# All that a machine with a GPU is asked for: is the network right there, how fast is it beside PyTorch, how near to the
# memory's speed. From the project's root, with this project's requirements and benchmarks/requirements.txt installed:
#
#   benchmarks/on_gpu.sh [FOLDER] [--quick]
#
# Meant for under nine minutes on one large GPU. Each step writes FOLDER/STEP.json (default runs/benchmarks/gpu) and is
# left out where that exists: after a break, the same command goes on. The last joins all in FOLDER/roofline.json.
# --quick is for a CPU: small batches, few repeats, eager PyTorch; it shows that the script works.
set -u
cd "$(dirname "$0")/.."
folder=runs/benchmarks/gpu quick=""
for argument in "$@"; do
  case "$argument" in
    --quick) quick=--quick ;;
    -*) echo "usage: benchmarks/on_gpu.sh [FOLDER] [--quick]" >&2; exit 2 ;;
    *) folder=$argument ;;
  esac
done
python=${PYTHON:-python} failed=0
export XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-false}  # PyTorch needs memory beside JAX
mkdir -p "$folder"

step() {  # NAME SECONDS MODULE OPTION...
  local name=$1 seconds=$2; shift 2
  if [ -e "$folder/$name.json" ]; then echo "== $name: there already"; return; fi
  echo "== $name: python -m benchmarks.$*"
  timeout $((seconds * slack)) "$python" -m "benchmarks.$1" "${@:2}" --json "$folder/$name.json" || { echo "== $name failed" >&2; failed=1; }
}

if [ -n "$quick" ]; then
  slack=5
  train=(--quick --repeats 1 --batches 2 --peers transformers --size 64) infer=(--quick --repeats 1 --batches 1 --peers transformers)
  widths=(1.0_224)
else
  slack=1
  train=(--repeats 3 --peers ours-native,transformers-compile) infer=(--repeats 3 --peers ours-apply,transformers-compile)
  widths=(1.0_224 1.4_224)
fi
step numerics 180 numerics $quick
for width in "${widths[@]}"; do
  step "train_classification_$width" 120 train_step --task classification --variant "$width" "${train[@]}"
  step "infer_classification_$width" 120 inference --task classification --variant "$width" "${infer[@]}"
done
size=(); [ -n "$quick" ] || size=(--size 513)
step train_segmentation 120 train_step --task segmentation "${train[@]}" "${size[@]}"
step infer_segmentation 120 inference --task segmentation "${infer[@]}" ${quick:+--size 65}
step train_detection 120 train_step --task detection "${train[@]}"
step infer_detection 120 inference --task detection "${infer[@]}" ${quick:+--size 96}
"$python" -m benchmarks.roofline "$folder" $quick || failed=1
exit $failed
