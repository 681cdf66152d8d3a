# Shared by the scripts beside this file; sourced, not run. It changes to the root of the repository.

unset CDPATH # with it, cd prints where it went
CALLER=$PWD
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SCRIPT=${0##*/}

die() { printf 'error: %s\n' "$*" >&2; exit 2; }

# The comment that opens the script is its help.
help_and_exit() { sed -n '2,/^[^#]/{/^[^#]/d;s/^#$//;s/^# //;p}' "$ROOT/scripts/$SCRIPT"; exit 0; }
case " $* " in *" --help "* | *" -h "*) help_and_exit ;; esac

# A path that the user gave, relative to where the user stands.
absolute() { case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$CALLER/$1" ;; esac; }

export TRACE_VENV
TRACE_VENV=$(absolute "${TRACE_VENV:-$ROOT/.venv}")
cd "$ROOT"

# Without a .venv, an active conda environment of the name that `environment_setup.sh --conda` gives is the environment.
SETUP=(bash "$ROOT/environment_setup.sh")
PY=$TRACE_VENV/bin/python
if [[ ! -e $TRACE_VENV && ${CONDA_DEFAULT_ENV:-} == "${TRACE_CONDA_ENV:-trace}" && -n ${CONDA_PREFIX:-} ]]; then
  SETUP+=(--conda)
  PY=$CONDA_PREFIX/bin/python
fi
PATH=$(dirname "$PY"):$PATH # DeepSpeed compiles its operators with the ninja it finds here

need_environment() {
  [[ -x $PY ]] || die "$SCRIPT found no environment in $TRACE_VENV. Create it: bash environment_setup.sh${1:+ $1}"
}
