# Make /opt/essence from a lock: install-environment.sh LOCK. Every file is checked against the lock's hashes.
set -eu
lock=$1
certificates=/run/secrets/certificates
if [ -s $certificates ]; then export PIP_CERT=$certificates SSL_CERT_FILE=$certificates; fi
if ls /wheels/*.whl >/dev/null 2>&1; then
  export UV_FIND_LINKS=/wheels
else
  case $lock in *-cpu.txt) export UV_TORCH_BACKEND=cpu ;; esac
fi
python3 -m venv /opt/bootstrap
/opt/bootstrap/bin/pip install --quiet --disable-pip-version-check --require-hashes -r /locks/bootstrap.txt
uv=/opt/bootstrap/bin/uv
export UV_NO_PROGRESS=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/essence
$uv venv --quiet --python "$(command -v python3)" /opt/essence
# What is only there as source is built with the setuptools of the lock.
$uv pip sync --quiet --require-hashes --build-constraints "$lock" "$lock"
# A grader on another version of a package that the environment has: in a folder that only its processes look in.
if [ -f /locks/math-verify-0.9.txt ]; then
  grader=/opt/essence/graders/math-verify-0.9
  $uv pip install --quiet --no-deps --require-hashes --target $grader -r /locks/math-verify-0.9.txt
  cp /locks/math-verify-0.9.txt $grader/essence-lock.txt
fi
rm -rf /opt/bootstrap
# The lock that was installed is the identity of this environment in the record of every stage.
cp "$lock" /opt/essence/essence-lock.txt
# Bytecode without times, made by one process in one order, also of what Python itself compiled meanwhile (-f) and
# none by itself (-B): the same bytes each time. Some packages carry examples
# that are no Python; they are nothing to fail for.
/opt/essence/bin/python -B -m compileall -f -q -j 1 --invalidation-mode unchecked-hash /opt/essence >/dev/null || true
