#!/usr/bin/env bash
# Lint, format, import order and types: run it before a commit. Requires bash environment_setup.sh --dev.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_environment --dev

"$PY" -m ruff check .
"$PY" -m ruff format --check .
"$(dirname "$PY")/lint-imports" --no-cache
# mypy refuses a package named like a module of the standard library, so it checks the folder under its installed name.
mkdir -p build/types
ln -sfn ../../trace build/types/trace_vlm
"$PY" -m mypy
