#!/usr/bin/env bash
# Make .venv/ from hash-locked versions, a base and layers on top of it:
# locks/install.sh host|cpu [dev] [vllm] [peers] [math-verify-0.9]
# or .venv-download, .venv-train and .venv-eval, one for each kind of stage, from the locks of the images:
# locks/install.sh environments cuda|cpu
# They lie in the folder that ESSENCE_ENVIRONMENTS names, else here.
# or the same in a folder of its own below TMPDIR, which is removed again: the locks as a new machine would find them.
# locks/install.sh self-test cuda|cpu
# or that of trainings with pytest beside it, for the tests that need a GPU:
# locks/install.sh gpu-tests cuda|cpu
#
# The environment is Python 3.11 whatever the system's Python is, because the CPU build of torch is locked for it;
# uv finds a Python 3.11 on the machine or fetches one. Where PIP_FIND_LINKS names a folder of wheels, they are used;
# otherwise the CPU build of torch comes from PyTorch's own index, whose address uv knows.
set -euo pipefail
apart=
if [ -n "${ESSENCE_ENVIRONMENTS:-}" ]; then mkdir -p "$ESSENCE_ENVIRONMENTS"; apart=$(cd "$ESSENCE_ENVIRONMENTS" && pwd); fi
cd "$(dirname "$0")/.."
apart=${apart:-$PWD}

fail() { printf 'setup: %s\n' "$1" >&2; exit 2; }

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  fail "needs Python 3.11 or newer as '$python' (found: $("$python" --version 2>&1 || echo none)); name one: make setup PYTHON=/path/to/python3.11"

# Images and PyTorch's own index are for Linux x86-64; elsewhere PyTorch comes from the package index. The host side is
# without PyTorch, and its lock is for any system.
platform=$(uname -s)-$(uname -m)
cpu=cpu
case $platform in
  Linux-x86_64 | Darwin-arm64) ;;
  Linux-aarch64) cpu='cpu-linux-aarch64' ;;
  *) [ "${1:-}" = host ] || fail "no versions are locked for $platform (there are: Linux on x86-64 and ARM, macOS 14 or newer on Apple silicon)" ;;
esac

bootstrap=.cache/bootstrap
if ! [ -x "$bootstrap/bin/uv" ] || ! cmp -s locks/bootstrap.txt "$bootstrap/lock"; then
  rm -rf "$bootstrap"
  "$python" -m venv "$bootstrap" || fail "'$python -m venv' does not work; on Debian or Ubuntu: apt-get install python3-venv"
  "$bootstrap/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/bootstrap.txt
  cp locks/bootstrap.txt "$bootstrap/lock"
fi
uv=$bootstrap/bin/uv

if [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS=$PIP_FIND_LINKS
elif [ "$platform" = Linux-x86_64 ]; then export UV_TORCH_BACKEND=cpu; fi
# Every stage is a process that imports PyTorch. Where Python does not keep bytecode (PYTHONDONTWRITEBYTECODE, a read-only
# disk), each would compile it first, for ten seconds; so all that is installed is compiled once, here.
export VIRTUAL_ENV=$PWD/.venv UV_NO_PROGRESS=1 UV_COMPILE_BYTECODE=1

# One environment from one lock. The lock is copied last: an interrupted installation starts over.
environment() {
  local folder=$apart/.venv-$1 lock=locks/$2.txt version=3.11
  case $2 in *-cuda) version=3.12; unset UV_TORCH_BACKEND ;; esac
  if cmp -s "$lock" "$folder/essence-lock.txt"; then echo "setup: $folder is there, of $lock"; return; fi
  echo "setup: $folder from $lock"
  rm -rf "$folder"
  "$uv" venv --quiet --python "$version" "$folder" ||
    fail "no Python $version here, and none could be fetched: install it, with its folder on PATH"
  VIRTUAL_ENV=$folder "$uv" pip sync --quiet --require-hashes --build-constraints "$lock" "$lock"
  if [ "$1" = eval ]; then
    target=$folder/graders/math-verify-0.9
    VIRTUAL_ENV=$folder "$uv" pip install --quiet --no-deps --require-hashes --target "$target" \
      -r locks/math-verify-0.9.txt
    cp locks/math-verify-0.9.txt "$target/essence-lock.txt"
  fi
  PYTHONPATH=$PWD "$folder/bin/python" -m essence.stages.self_test "$1" >"$folder/self-test.txt" ||
    fail "$folder cannot import what its stages need: $(grep FAILED "$folder/self-test.txt" || tail -n 1 "$folder/self-test.txt")"
  cp "$lock" "$folder/essence-lock.txt"
}

flavour_environments() {
  [ "$platform" = Linux-x86_64 ] || fail "the environments of the images are locked for Linux x86-64 alone, and this is $platform: make setup"
  case $1 in cuda | cpu) ;; *) fail "which flavour: cuda or cpu, as in: locks/install.sh environments cuda" ;; esac
  environment download download-cpu
  environment train "train-$1"
  environment eval "eval-$1"
}

case ${1:-} in
  environments)
    flavour_environments "${2:-}"
    echo "setup: three environments of flavour $2 are there; next: .venv/bin/invoke run --experiment bespoke --lsp 0.5 --engine local"
    exit
    ;;
  self-test)
    apart=$(mktemp -d)
    trap 'rm -rf "$apart"' EXIT
    flavour_environments "${2:-}"
    cat "$apart"/.venv-*/self-test.txt
    echo "setup: the environments of flavour $2 import what their stages import (installed and removed in $SECONDS s)"
    exit
    ;;
  gpu-tests)
    environment train "train-${2:-cuda}"
    # In a folder of its own: an environment that has more than its lock is another one.
    target=$apart/.venv-train/tests
    if ! cmp -s locks/dev.txt "$target/essence-lock.txt"; then
      rm -rf "$target"
      VIRTUAL_ENV=$apart/.venv-train "$uv" pip install --quiet --no-deps --require-hashes --target "$target" -r locks/dev.txt
      cp locks/dev.txt "$target/essence-lock.txt"
    fi
    exit
    ;;
esac

base=${1:-}
shift || fail "which base: host or cpu, as in: locks/install.sh cpu dev vllm"

# A layer whose versions depend on the base is locked for it: locks/vllm-cpu.txt.
lock_of() {
  local lock
  if [ "$1" = cpu ]; then echo "locks/$cpu.txt"; return; fi
  for lock in "locks/$1-$base.txt" "locks/$1.txt"; do
    if [ -f "$lock" ]; then echo "$lock"; return; fi
  done
  fail "no lock for '$1' (there are: $(cd locks && echo *.txt))"
}

names=$(lock_of "$base")
for layer in "$@"; do names="$names $(lock_of "$layer")"; done

[ -x .venv/bin/python ] || "$uv" venv --quiet --python 3.11 .venv
"$uv" pip sync --quiet --require-hashes "$(lock_of "$base")"
rm -f .venv/essence-*.txt
for layer in "$@"; do
  if [ "$layer" = math-verify-0.9 ]; then
    # Another version of a package of the base: in a folder of its own, which only this grader's processes look in.
    target=.venv/graders/$layer
    rm -rf "$target"
    "$uv" pip install --quiet --no-deps --require-hashes --target "$target" -r "$(lock_of "$layer")"
    cp "$(lock_of "$layer")" "$target/essence-lock.txt"
    continue
  fi
  # Without dependencies: the lock is complete, and names of packages that break beside these are left out on purpose.
  "$uv" pip install --quiet --no-deps --require-hashes -r "$(lock_of "$layer")"
  cp "$(lock_of "$layer")" ".venv/essence-$layer.txt"
done
"$uv" pip install --quiet --no-deps --no-build-isolation --editable .
# Ctrl-C in the first tenths of a second, before the kit's own code runs, is no traceback either.
cp locks/00-essence-interrupt.pth "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
# The lock that was installed is the identity of this environment in every stage's key; a layer's counts where it is used.
cp "$(lock_of "$base")" .venv/essence-lock.txt
.venv/bin/python -m compileall -q -j 0 essence
echo "setup: .venv holds $names; next: make reproduce-tiny"
