#!/usr/bin/env bash
# fuzz.sh SECONDS FOLDER: fuzzes the loader by atheris for two thirds of the time, and the trace writer,
# built with sanitizers in build-asan, for the rest. What it finds is in FOLDER/findings.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1
folder=$2
seed=${FUZZ_SEED:-$(( $(date +%s) % 1000000 ))}
mkdir -p "$folder/loader" "$folder/findings"
export PYTHONPATH=$PWD/tests/python:$PWD/tests/fuzz${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1

echo "fuzz: seed $seed; the same again by FUZZ_SEED=$seed"
if python -c 'import atheris' 2>/dev/null; then
  echo "fuzz: the loader, for $(( seconds * 2 / 3 )) s"
  if ! python tests/fuzz/loader.py -max_total_time=$(( seconds * 2 / 3 )) -seed="$seed" \
      -artifact_prefix="$folder/findings/" "$folder/loader" > "$folder/loader.log" 2>&1; then
    tail -60 "$folder/loader.log"
    echo "fuzz: a finding is in $folder/findings; python tests/fuzz/loader.py FILE runs it alone"
    exit 1
  fi
  tail -2 "$folder/loader.log"
else
  echo "fuzz: the loader is left out: there is no atheris for $(python -V) on $(uname -m)"
fi

echo "fuzz: the trace writer, for $(( seconds / 3 )) s"
if ! build-asan/fuzz_trace_writer -seed="$seed" -seconds=$(( seconds / 3 )) > "$folder/trace_writer.log" 2>&1; then
  tail -60 "$folder/trace_writer.log" | tr '\r' '\n'
  echo "fuzz: the last -seed above runs the input alone: build-asan/fuzz_trace_writer -seed=N -seconds=0"
  exit 1
fi
tail -1 "$folder/trace_writer.log"
