#!/usr/bin/env bash
# Lint, format and types, as they must be before a change is committed. Needs bash environment_setup.sh --dev.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_environment --dev

"$PY" -m ruff check .
"$PY" -m ruff format --check .
# mypy refuses a package that bears the name of a module of the standard library, so it gets the folder's installed name.
mkdir -p build/types
ln -sfn ../../trace build/types/trace_vlm
"$PY" -m mypy
