#!/usr/bin/env bash
# All measurements that need a CUDA GPU, in one call:  bash benchmarks/on_gpu.sh [python]
# Tables go to benchmarks/results, the classic run (its seconds: runs/classic_gpu/phases.json) to runs/classic_gpu.
# What fails is named, and the rest still runs.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
export NO_ALBUMENTATIONS_UPDATE=1
"$python" -c "import monai, segmentation_models_pytorch" 2>/dev/null ||
    echo "MONAI or segmentation_models_pytorch is missing (make .venv/bench): their rows will be empty" >&2
device=$("$python" -c "import torch; from benchmarks.speed import file_name; print(file_name(torch.device('cuda')))") ||
    exit 1
status=0
measure() {
    echo "== $*"
    "$python" "$@" || { status=1; echo "failed: $*" >&2; }
}
measure benchmarks/limits.py --device cuda
measure benchmarks/speed.py --device cuda
measure benchmarks/speed.py --device cuda --batch-size 16 --races "Mean Teacher step alone" --no-ablation \
    --output "benchmarks/results/${device}_batch_16.json"
measure benchmarks/scaling.py --device cuda
[ -d data/demo ] || measure demo_data.py --output data/demo
time measure train.py --data data/demo --run classic_gpu --resume --profile full --device cuda
cat runs/classic_gpu/phases.json
exit $status
