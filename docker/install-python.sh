# Python and a C compiler, and the packages that are named, where the base has no Python; a base that brings it, as those
# without GPUs do, is left as it is.
set -eu
if python3 -c 'import ensurepip, venv' 2>/dev/null; then exit 0; fi
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends python3 python3-venv python3-dev gcc ca-certificates "$@"
rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/ldconfig/aux-cache
