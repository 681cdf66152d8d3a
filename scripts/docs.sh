#!/usr/bin/env bash
# Builds the documentation site into output/site; any warning is an error.
#
#   bash scripts/docs.sh        needs: bash environment_setup.sh --extras docs
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_environment "--extras docs"
"$PY" -c "import mkdocs" 2>/dev/null || die "the site needs mkdocs. Install it: bash environment_setup.sh --extras docs"
mkdir -p build && ln -sfn ../trace build/trace_vlm # mkdocstrings reads the sources under the installed name
export DISABLE_MKDOCS_2_WARNING=true NO_MKDOCS_2_WARNING=1
"$PY" -m mkdocs build --strict "$@"
(($#)) || echo "look at it, with search: $PY -m http.server -d output/site"
