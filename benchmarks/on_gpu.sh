#!/usr/bin/env bash
# All that has to be measured on a CUDA GPU, in eight minutes of its time, most important first:
#
#     bash benchmarks/on_gpu.sh DEST [PYTHON] [cpu]
#
# Each result is in DEST the moment it is there, so that a lease that ends early costs only what comes last:
#   first_minutes.json   at most 150 s; needs neither data nor albumentations nor zarr: is it right, how fast is a step,
#                        an image, and which ideas would make a step faster?
#   classic.json, best.json   at most 90 s each, and 30 s for a small demo: where the time of a whole run of the full
#                        recipe goes
#   races.json           at most 110 s: beside a plain loop, MONAI, and one window at a time
#   log.txt              all that was printed
# With `cpu` all of it runs on the CPU in miniature, to see that it does. A part that fails or takes too long is named,
# and the others still run.
set -uo pipefail
[ $# -ge 1 ] || { sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }
refuse() { echo "error: $*" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p -- "$1" && dest=$(cd -- "$1" && pwd) && [ -w "$dest" ] || refuse "$1: cannot be written; choose another DEST"
where=${3:-cuda}
case $where in cpu | cuda) ;; *) refuse "$where: the third word is cpu, or left out" ;; esac

# The Python that was given, by its full path; else that of `make`, else the one of the machine.
if [ $# -ge 2 ]; then
    python=$2
elif [ -x "$root/.venv/bin/python" ]; then
    python=$root/.venv/bin/python
else
    python=python3
fi
found=$(command -v -- "$python") || refuse "$python: no such program; give the path of a Python"
case $found in /*) python=$found ;; */*) python=$PWD/$found ;; esac
"$python" -c "import torch" 2> /dev/null || refuse "$python: has no torch; give the path of a Python that has"

cd "$root"
export NO_ALBUMENTATIONS_UPDATE=1
rm -f "$dest"/{first_minutes,classic,best,races}.json       # of an earlier call: not to be taken for those of this one
exec > >(trap '' INT TERM; exec tee "$dest/log.txt") 2>&1

status=0
child=
trap '[ -z "$child" ] || kill "$child"; echo "stopped"; exit 130' INT TERM
measure() {  # measure SECONDS COMMAND…
    local seconds=$(($1 * patience)) began=$SECONDS
    shift
    echo "== $*"
    timeout -k 5 "$seconds" "$python" "$@" &
    child=$!
    wait "$child" || { status=1; echo "failed or stopped after $((SECONDS - began)) s: $*"; }
    child=
    echo "== $((SECONDS - began)) s"
}

if [ "$where" = cpu ]; then
    patience=5  # times as long as a GPU may take
    small=(--miniature)
    scans=2
    settings=(--base-channels=2 --patch-size=256 --sup-epochs=2 --ssl-epochs=2 --steps-per-epoch=2 --batch-size=2
              --overlap=0 --tta=false)
    race=(--base-channels 2 --batch-size 2 --rounds 1)
else
    patience=1
    small=()
    scans=40
    settings=()
    race=(--rounds 3)
fi

# The runs write runs/ and checkpoints/ into the folder that they are started in.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

measure 150 benchmarks/first_minutes.py --device "$where" --output "$dest/first_minutes.json" "${small[@]}"
measure 30 demo_data.py --output "$work/demo" --scans "$scans"
for method in mean_teacher best; do
    name=$([ $method = best ] && echo best || echo classic)
    cd "$work"
    measure 90 "$root/benchmarks/full_run.py" --output "$dest/$name.json" --profile full --data=demo --run="$name" \
        --method=$method --device="$where" "${settings[@]}"
    cd "$root"
done
measure 110 benchmarks/speed.py --device "$where" --no-ablation --races "Mean Teacher step alone,image" \
    --output "$dest/races.json" "${race[@]}"
exit $status
