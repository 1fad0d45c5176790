#!/usr/bin/env bash
# All measurements that need a CUDA GPU, in one call:  bash benchmarks/on_gpu.sh [python]
# Tables go to benchmarks/results, the classic run (its seconds: runs/classic_gpu/phases.json) to runs/classic_gpu.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
export NO_ALBUMENTATIONS_UPDATE=1
"$python" -c "import monai, segmentation_models_pytorch" 2>/dev/null ||
    echo "MONAI or segmentation_models_pytorch is missing (make .venv/bench): their rows will be empty" >&2
"$python" benchmarks/limits.py --device cuda
"$python" benchmarks/speed.py --device cuda
"$python" benchmarks/speed.py --device cuda --batch-size 16 --races "Mean Teacher step alone" --no-ablation \
    --output benchmarks/results/gpu_batch_16.json
"$python" benchmarks/scaling.py --device cuda
[ -d data/demo ] || "$python" demo_data.py --output data/demo
time "$python" train.py --data data/demo --run classic_gpu --resume --profile full --device cuda
cat runs/classic_gpu/phases.json
