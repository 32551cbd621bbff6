#!/usr/bin/env bash
# Prepares the check for aarch64: writes the header that CMake would write, and the options by which
# bindings find their headers, into BUILD_FOLDER/bindings.rsp. This machine's Python headers serve, since
# both are 64-bit Linux. Debian's pyconfig.h goes on to that of the processor, of which only this
# machine's own is installed; it stands in for the other. usage: aarch64_headers.sh BUILD_FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."

build=$1
generated=$build/generated
mkdir -p "$generated/bindings"
sed -E 's/@[A-Za-z0-9_]+@//' cmake/build_info.h.in > "$generated/bindings/build_info.h"

python - "$generated" <<'PY'
import pathlib
import sys
import sysconfig

headers = pathlib.Path(sysconfig.get_path("include"))
wanted = f"aarch64-linux-gnu/{headers.name}/pyconfig.h"
if f"<{wanted}>" in (headers / "pyconfig.h").read_text():
    own = headers.parent / sysconfig.get_config_var("MULTIARCH") / headers.name / "pyconfig.h"
    stand_in = pathlib.Path(sys.argv[1], wanted)
    stand_in.parent.mkdir(parents=True, exist_ok=True)
    stand_in.write_text(f'#include "{own}"\n')
PY

echo "-I$generated $(python -m pybind11 --includes)" > "$build/bindings.rsp"
