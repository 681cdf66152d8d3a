#!/usr/bin/env bash
# Installs what is missing and runs the test suite.
#
#   bash scripts/test.sh [arguments of pytest ...]     paths are relative to the root of the repository
set -euo pipefail
SCRIPT_ARGUMENTS=("$@")
set -- # --help and -h are pytest's
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

"${SETUP[@]}" --dev
# A process a core, whole files each, since what a file prepares is shared in it.
# -P: the root of the repository stays off sys.path, so that the tests meet the installed name only.
exec "$PY" -P -m pytest -q -n auto --maxprocesses 4 --dist loadfile ${SCRIPT_ARGUMENTS[@]+"${SCRIPT_ARGUMENTS[@]}"}
