#!/usr/bin/env bash
# Installs what is missing and runs the test suite.
#
#   bash scripts/test.sh [arguments of pytest ...]     paths are relative to the root of the repository
set -euo pipefail
SCRIPT_ARGUMENTS=("$@")
set -- # --help and -h are pytest's
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

"${SETUP[@]}" --dev
# -P: the root of the repository stays off sys.path, so that the tests meet the installed name only.
exec "$PY" -P -m pytest -q ${SCRIPT_ARGUMENTS[@]+"${SCRIPT_ARGUMENTS[@]}"}
