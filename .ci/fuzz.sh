#!/usr/bin/env bash
# fuzz.sh SECONDS FOLDER: fuzzes the loader and the recovery of spools by atheris for a third of the time each, one
# after the other, and beside them the trace writer, built with sanitizers in build-asan, for the rest. What it finds
# is in FOLDER/findings.
set -euo pipefail
cd "$(dirname "$0")/.."
each=$(( $1 / 3 ))
folder=$2
seed=${FUZZ_SEED:-$(( $(date +%s) % 1000000 ))}
mkdir -p "$folder/loader" "$folder/spool" "$folder/findings"
export PYTHONPATH=$PWD/tests/python:$PWD/tests/fuzz${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1
failed=0

echo "fuzz: seed $seed; the same again by FUZZ_SEED=$seed"
echo "fuzz: the trace writer, for $each s, beside the others"
build-asan/fuzz_trace_writer -seed="$seed" -seconds="$each" > "$folder/trace_writer.log" 2>&1 &
trace_writer=$!
trap 'kill "$trace_writer" 2>/dev/null || true' EXIT

if python -c 'import atheris' 2>/dev/null; then
  for target in loader spool; do
    script=tests/fuzz/$target.py
    [[ $target == spool ]] && script=tests/fuzz/spool_recovery.py
    echo "fuzz: $script, for $each s"
    if ! python "$script" -max_total_time="$each" -seed="$seed" \
        -artifact_prefix="$folder/findings/" "$folder/$target" > "$folder/$target.log" 2>&1; then
      tail -60 "$folder/$target.log"
      echo "fuzz: a finding is in $folder/findings; python $script FILE runs it alone"
      failed=1
    else
      tail -2 "$folder/$target.log"
    fi
  done
else
  echo "fuzz: loader and spools are left out: there is no atheris for $(python -V) on $(uname -m)"
fi

if wait "$trace_writer"; then
  tail -1 "$folder/trace_writer.log"
else
  tail -60 "$folder/trace_writer.log" | tr '\r' '\n'
  echo "fuzz: the last -seed above runs the input alone: build-asan/fuzz_trace_writer -seed=N -seconds=0"
  failed=1
fi
exit "$failed"
