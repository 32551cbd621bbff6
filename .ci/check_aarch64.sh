#!/usr/bin/env bash
# Compiles one native source for aarch64 with zig's clang, so that code for one processor cannot slip
# out of its guard. Nothing is linked. Zig would add UBSan at -O0.
# usage: check_aarch64.sh BUILD_FOLDER SOURCE, after aarch64_headers.sh
set -euo pipefail
cd "$(dirname "$0")/.."

build=$1
source=$2
mkdir -p "$build/object"
includes=(-Icsrc)
if [[ $source == csrc/bindings/* ]]; then
  includes+=("@$build/bindings.rsp")
fi

export ZIG_GLOBAL_CACHE_DIR=$PWD/$build/zig
python -m ziglang c++ -target aarch64-linux-gnu.2.28 -std=c++20 -Wall -Wextra -Werror -O0 \
  -g0 -fno-sanitize=all \
  "${includes[@]}" -c -o "$build/object/$(basename "$source").o" "$source"
