#!/usr/bin/env bash
# Prints the path of a Python 3.10 to 3.13 that really runs and can make virtual environments; of one
# version only when that is given (find_python.sh 3.12). Prints nothing and fails when there is none.
# A name on PATH is no proof: a version manager's shim may refuse to run.
set -u

if [ $# -gt 0 ]; then
  names=("python$1" "$HOME"/.pyenv/versions/"$1".*/bin/python)
else
  names=(python3 python3.12 python3.13 python3.11 python3.10 python)
fi
for name in "${names[@]}"; do
  path=$("$name" - "${1:-}" 2>/dev/null <<'PY'
import ensurepip, sys, sysconfig, os, venv
version = "%d.%d" % sys.version_info[:2]
headers = os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
if headers and (3, 10) <= sys.version_info[:2] <= (3, 13) and sys.argv[1] in ("", version):
    print(sys.executable)
PY
  ) || continue
  if [ -n "$path" ]; then
    echo "$path"
    exit 0
  fi
done
exit 1
