# The kit itself: a folder on PYTHONPATH with bytecode beside it; nothing is needed to build it.
set -eu
mkdir -p /opt/essence-source
cp -r /run/essence /opt/essence-source/essence
find /opt/essence-source -name __pycache__ -prune -exec rm -rf {} +
/opt/essence/bin/python -B -m compileall -f -q -j 1 --invalidation-mode unchecked-hash /opt/essence-source
