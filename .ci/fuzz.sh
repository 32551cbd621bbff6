#!/usr/bin/env bash
# fuzz.sh SECONDS FOLDER: fuzzes the loader and the recovery of spools by atheris for a third of the time each, and
# the trace writer, built with sanitizers in build-asan, for the rest. What it finds is in FOLDER/findings.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1
folder=$2
seed=${FUZZ_SEED:-$(( $(date +%s) % 1000000 ))}
mkdir -p "$folder/loader" "$folder/spool" "$folder/findings"
export PYTHONPATH=$PWD/tests/python:$PWD/tests/fuzz${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1

echo "fuzz: seed $seed; the same again by FUZZ_SEED=$seed"
if python -c 'import atheris' 2>/dev/null; then
  for target in loader spool; do
    script=tests/fuzz/$target.py
    [[ $target == spool ]] && script=tests/fuzz/spool_recovery.py
    echo "fuzz: $script, for $(( seconds / 3 )) s"
    if ! python "$script" -max_total_time=$(( seconds / 3 )) -seed="$seed" \
        -artifact_prefix="$folder/findings/" "$folder/$target" > "$folder/$target.log" 2>&1; then
      tail -60 "$folder/$target.log"
      echo "fuzz: a finding is in $folder/findings; python $script FILE runs it alone"
      exit 1
    fi
    tail -2 "$folder/$target.log"
  done
else
  echo "fuzz: loader and spools are left out: there is no atheris for $(python -V) on $(uname -m)"
fi

echo "fuzz: the trace writer, for $(( seconds / 3 )) s"
if ! build-asan/fuzz_trace_writer -seed="$seed" -seconds=$(( seconds / 3 )) > "$folder/trace_writer.log" 2>&1; then
  tail -60 "$folder/trace_writer.log" | tr '\r' '\n'
  echo "fuzz: the last -seed above runs the input alone: build-asan/fuzz_trace_writer -seed=N -seconds=0"
  exit 1
fi
tail -1 "$folder/trace_writer.log"
