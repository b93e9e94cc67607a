#!/usr/bin/env bash
# benchmarks/gpu.py on a bare machine with a GPU, six minutes in all: gpu.json and gpu.md in $OUT, else in build/gpu. TMPDIR needs 40 GB.
# A torch that sees the GPU is used as it is. Without network: the wheels of what else is missing in a folder, WHEELS=folder.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=${OUT:-$root/build/gpu}
python=python3
export PYTHONPATH="$root/benchmarks:$root/src" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
sees_gpu='import torch; assert torch.cuda.is_available()'

mkdir -p "$out"
if ! "$python" -c "$sees_gpu; import gpu"; then  # what is missing is said here
  lacking='^$' own=
  if "$python" -c "$sees_gpu" 2>"$out/torch.txt"; then lacking='^(torch|triton|nvidia-.*)==' own=--system-site-packages; fi
  "$python" -m venv $own "$out/venv"
  python=$out/venv/bin/python
  if [ -n "${WHEELS:-}" ]; then
    "$python" -m pip install --quiet --no-index --no-deps "$WHEELS"/*.whl
  else
    grep -vE "$lacking" "$root/requirements.lock" >"$out/lock.txt"
    "$python" -m pip install --quiet --requirement "$out/lock.txt"
    "$python" -m pip install --quiet bitsandbytes || echo "without bitsandbytes the part QLoRA is left out"
  fi
fi
# What was found is written after each part, so that nothing is lost where the last one takes too long.
left=$((360 - SECONDS))
minutes=$(awk "BEGIN {print $left / 60}")
timeout "$left" "$python" "$root/benchmarks/gpu.py" --out "$out/gpu.json" --minutes "$minutes" "$@"
