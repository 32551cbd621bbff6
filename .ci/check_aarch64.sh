#!/usr/bin/env bash
# Compiles one native source for aarch64 with zig's clang, so that code for one processor cannot slip
# out of its guard. Nothing is linked. The bindings use this machine's Python headers, which serve,
# since both are 64-bit Linux. Zig would add UBSan at -O0. usage: check_aarch64.sh BUILD_FOLDER SOURCE
set -euo pipefail
cd "$(dirname "$0")/.."

build=$1
source=$2
mkdir -p "$build/generated/bindings" "$build/object"
includes=(-Icsrc)
if [[ $source == csrc/bindings/* ]]; then
  sed -E 's/@[A-Za-z0-9_]+@//' cmake/build_info.h.in > "$build/generated/bindings/build_info.$$"
  mv "$build/generated/bindings/build_info.$$" "$build/generated/bindings/build_info.h"
  read -ra python_includes < <(python -m pybind11 --includes)
  includes+=("-I$build/generated" "${python_includes[@]}")
fi

export ZIG_GLOBAL_CACHE_DIR=$PWD/$build/zig
python -m ziglang c++ -target aarch64-linux-gnu.2.28 -std=c++20 -Wall -Wextra -Werror -O0 \
  -g0 -fno-sanitize=all \
  "${includes[@]}" -c -o "$build/object/$(basename "$source").o" "$source"
