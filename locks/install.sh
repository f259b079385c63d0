#!/usr/bin/env bash
# Make .venv/ from hash-locked versions: locks/install.sh host|cpu [dev]
#
# The environment is Python 3.11 whatever the system's Python is, because the CPU build of torch is locked for it;
# uv finds a Python 3.11 on the machine or fetches one. Where PIP_FIND_LINKS names a folder of wheels, they are used;
# otherwise the CPU build of torch comes from PyTorch's own index, whose address uv knows.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'setup: %s\n' "$1" >&2; exit 2; }

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  fail "needs Python 3.11 or newer as '$python' (found: $("$python" --version 2>&1 || echo none)); name one: make setup PYTHON=/path/to/python3.11"

bootstrap=.cache/bootstrap
if ! [ -x "$bootstrap/bin/uv" ] || ! cmp -s locks/bootstrap.txt "$bootstrap/lock"; then
  rm -rf "$bootstrap"
  "$python" -m venv "$bootstrap" || fail "'$python -m venv' does not work; on Debian or Ubuntu: apt-get install python3-venv"
  "$bootstrap/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/bootstrap.txt
  cp locks/bootstrap.txt "$bootstrap/lock"
fi
uv=$bootstrap/bin/uv

if [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS=$PIP_FIND_LINKS; else export UV_TORCH_BACKEND=cpu; fi
export VIRTUAL_ENV=$PWD/.venv UV_NO_PROGRESS=1

[ -x .venv/bin/python ] || "$uv" venv --quiet --python 3.11 .venv
"$uv" pip sync --quiet --require-hashes "locks/$1.txt"
if [ "${2:-}" = dev ]; then "$uv" pip install --quiet --require-hashes -r locks/dev.txt; fi
"$uv" pip install --quiet --no-deps --no-build-isolation --editable .
# The lock that was installed is the identity of this environment in every stage's key.
cp "locks/$1.txt" .venv/essence-lock.txt
if [ "${2:-}" = dev ]; then cp locks/dev.txt .venv/essence-dev.txt; else rm -f .venv/essence-dev.txt; fi
.venv/bin/python -m compileall -q -j 0 essence
echo "setup: .venv holds locks/$1.txt${2:+ and locks/$2.txt}; next: make reproduce-tiny"
