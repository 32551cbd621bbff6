#!/usr/bin/env bash
# Compiles the native sources for aarch64 with zig's clang, so that code for one processor cannot slip
# out of its guard: what CMake has laid out for this machine in BUILD_FOLDER, joint sources and written
# headers. Nothing is linked. This machine's Python headers serve, since both are 64-bit Linux.
# Debian's pyconfig.h goes on to that of the processor, of which only this machine's own is installed;
# it stands in for the other. Zig would add UBSan at -O0. usage: check_aarch64.sh BUILD_FOLDER JOBS
set -euo pipefail
cd "$(dirname "$0")/.."

build=$1
jobs=$2
mkdir -p "$build/object"
python - "$build" <<'PY'
import json
import pathlib
import sys
import sysconfig

build = pathlib.Path(sys.argv[1])
headers = pathlib.Path(sysconfig.get_path("include"))
wanted = f"aarch64-linux-gnu/{headers.name}/pyconfig.h"
if f"<{wanted}>" in (headers / "pyconfig.h").read_text():
    own = headers.parent / sysconfig.get_config_var("MULTIARCH") / headers.name / "pyconfig.h"
    stand_in = build / "generated" / wanted
    stand_in.parent.mkdir(parents=True, exist_ok=True)
    stand_in.write_text(f'#include "{own}"\n')
commands = json.loads((build / "compile_commands.json").read_text())
(build / "sources.txt").write_text("".join(f"{command['file']}\n" for command in commands))
PY
echo "-Icsrc -I$build/generated $(python -m pybind11 --includes)" > "$build/includes.rsp"

export build ZIG_GLOBAL_CACHE_DIR=$PWD/$build/zig
compile() {
  local object
  object=$build/object/$(basename "$1" .cpp).o
  echo "aarch64: $(basename "$1")"
  python -m ziglang c++ -target aarch64-linux-gnu.2.28 -std=c++20 -Wall -Wextra -Werror -O0 -g0 \
    -fno-sanitize=all "@$build/includes.rsp" -c -o "$object" "$1"
}
export -f compile
xargs -P "$jobs" -I{} bash -c 'compile "$1"' _ {} < "$build/sources.txt"
