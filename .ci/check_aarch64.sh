#!/usr/bin/env bash
# Compiles every native source for aarch64 with zig's clang, so that code for one processor cannot
# slip out of its guard. Nothing is linked. The bindings use this machine's Python headers, which
# serve, since both are 64-bit Linux. usage: check_aarch64.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:-python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
compile=("$python" -m ziglang c++ -target aarch64-linux-gnu.2.28 -std=c++20 -Wall -Wextra -Werror
         -O1 -Icsrc -c -o "$work/object.o")

for source in csrc/core/*.cpp csrc/export/*.cpp; do
  echo "aarch64: $source"
  "${compile[@]}" "$source"
done

includes=$("$python" -m pybind11 --includes)
mkdir -p "$work/generated/bindings"
sed -E 's/@[A-Za-z0-9_]+@//' cmake/build_info.h.in > "$work/generated/bindings/build_info.h"
for source in csrc/bindings/*.cpp; do
  echo "aarch64: $source"
  # shellcheck disable=SC2086
  "${compile[@]}" -I"$work/generated" $includes "$source"
done
