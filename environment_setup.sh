#!/usr/bin/env bash
# Installs what TRACE needs into one environment, at the versions of constraints.txt. Run again, it only checks.
#
#   bash environment_setup.sh                     a virtual environment in .venv (elsewhere: TRACE_VENV=DIR)
#
#   --conda            a conda environment instead, named trace (otherwise: TRACE_CONDA_ENV=NAME)
#   --gpu              DeepSpeed and a CUDA build of torch; tries flash-attn and goes on without it where it cannot be built
#   --dev              what the tests, the linter and the type checker need
#   --extras A,B       more extras of pyproject.toml (reason: remote reasoners; demo: the Gradio demo)
#   --system-packages  install MuJoCo's system libraries with sudo (for root they are installed anyway)
#   --require-rendering  stop when MuJoCo's system libraries are missing and cannot be installed
#   --check            say what is missing and install nothing (exit code 1 when something is)
#
# PYTHON names the interpreter to build on (3.11 or newer), TORCH_INDEX_URL the index of torch's CPU builds.
set -euo pipefail
unset CDPATH

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SYSTEM_PACKAGES="libegl1 libegl-mesa0 libgl1-mesa-dri" # Debian's names
CANDIDATES=(python3 python3.13 python3.12 python3.11 python)
[[ -z ${PYTHON:-} ]] || CANDIDATES=("$PYTHON")

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 2; }
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

parse_arguments() {
  conda=no gpu=no system=no rendering=no check=no extras=train,scenes
  while (($#)); do
    case $1 in
      --conda) conda=yes ;;
      --gpu) gpu=yes extras+=,gpu ;;
      --dev) extras+=,dev ;;
      --extras) (($# > 1)) || die "--extras needs a list, for example --extras reason,demo"; extras+=,$2; shift ;;
      --extras=*) extras+=,${1#*=} ;;
      --system-packages) system=yes ;;
      --require-rendering) rendering=yes ;;
      --check) check=yes ;;
      -h | --help) usage; exit 0 ;;
      *) die "environment_setup.sh does not know $1; --help lists what it knows" ;;
    esac
    shift
  done
}

# --- the interpreter ---------------------------------------------------------------------------------------------------

version_of() { "$1" -I -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

new_enough() { # 3.11.7
  local major minor
  IFS=. read -r major minor _ <<<"$1"
  ((major > 3 || (major == 3 && minor >= 11)))
}

base_python() { # sets BASE, the interpreter that a virtual environment is made from
  local candidate version found=""
  for candidate in "${CANDIDATES[@]}"; do
    version=$(version_of "$candidate") || continue
    if new_enough "$version"; then BASE=$candidate; return; fi
    found+="${found:+, }$candidate is $version"
  done
  die "Python 3.11 or newer is needed; ${found:-no interpreter was found as ${CANDIDATES[*]}}." \
    "Install it (Debian, Ubuntu: apt-get install python3.11 python3.11-venv) or name one:" \
    "PYTHON=/path/to/python3.11 bash environment_setup.sh"
}

virtual_environment() { # sets PY
  local venv=${TRACE_VENV:-$ROOT/.venv} version
  PY=$venv/bin/python
  if [[ -x $PY ]] && version=$(version_of "$PY"); then
    new_enough "$version" || die "$venv holds Python $version and 3.11 or newer is needed; remove the folder and run this again"
    "$PY" -I -c 'import pip' 2>/dev/null && return # an environment whose making was cut off has no pip
  elif [[ -L $PY || -e $PY ]]; then
    die "$PY does not start (its Python was moved or removed); remove $venv and run this again"
  fi
  base_python
  "$BASE" -I -c 'import venv, ensurepip' 2>/dev/null ||
    die "$BASE lacks the modules venv and ensurepip, which make a virtual environment with pip." \
      "Install them (Debian, Ubuntu: apt-get install python3-venv), or use conda: bash environment_setup.sh --conda"
  if [[ $check == yes ]]; then say "missing: the virtual environment $venv"; exit 1; fi
  say "making the virtual environment $venv with $BASE ($(version_of "$BASE"))"
  "$BASE" -m venv "$venv" || die "$venv could not be made; see above"
}

conda_environment() { # sets PY
  local name=${TRACE_CONDA_ENV:-trace}
  local where=(conda run -n "$name" python -I -c 'import sys; print(sys.executable)')
  command -v conda >/dev/null || die "conda is not on the PATH; install Miniforge, or leave --conda out for a virtual environment"
  PY=$("${where[@]}" 2>/dev/null) && [[ -x $PY ]] && return
  if [[ $check == yes ]]; then say "missing: the conda environment $name"; exit 1; fi
  say "making the conda environment $name"
  conda create -y -q -n "$name" python=3.11 pip || die "conda could not make the environment $name; see above"
  PY=$("${where[@]}")
}

# --- what is there -----------------------------------------------------------------------------------------------------

missing() { # prints the requirements of the chosen extras that this environment does not meet, one a line
  "$PY" -I - "$ROOT" "$1" <<'PYTHON'
import importlib.metadata, importlib.util, pathlib, sys, tomllib
root, extras = pathlib.Path(sys.argv[1]), sys.argv[2].split(",")
try:
    from packaging.requirements import Requirement
except ImportError:
    sys.exit("everything (the environment is empty)")
project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
optional = project["optional-dependencies"]
if unknown := sorted(set(extras) - set(optional)):
    sys.exit(f"error: there is no extra {', '.join(unknown)}; there are {', '.join(optional)}")
lines = [line.partition("#")[0].strip() for line in (root / "constraints.txt").read_text().splitlines()]
tested = {pin.name.lower(): pin for pin in map(Requirement, filter(None, lines))}
wanted = project["dependencies"] + [line for extra in extras for line in optional[extra]]
for need in dict.fromkeys(map(Requirement, wanted)):
    if need.marker and not need.marker.evaluate():
        continue
    need = tested.get(need.name.lower(), need)
    try:
        found = importlib.metadata.version(need.name)
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found is None or not need.specifier.contains(found, prereleases=True):
        print(need if found is None else f"{need} (found {found})")
spec = importlib.util.find_spec("trace_vlm")
if spec is None or pathlib.Path(spec.origin).resolve() != (root / "trace/__init__.py").resolve():
    print("trace-vlm from this folder")
PYTHON
}

has_gpu() { nvidia-smi -L 2>/dev/null | grep -c '^GPU' >/dev/null; }

installed_version() {
  "$PY" -I -c 'import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))' "$1" 2>/dev/null
}

# --- installing --------------------------------------------------------------------------------------------------------

pip_install() { "$PY" -m pip install --disable-pip-version-check -c "$ROOT/constraints.txt" "$@"; }

install_torch() {
  local version index=${TORCH_INDEX_URL:-https://download.pytorch.org/whl/cpu} installed
  version=$(sed -n 's/^torch==\([^ ]*\).*/\1/p' "$ROOT/constraints.txt")
  installed=$(installed_version torch) || installed=""
  if [[ ${installed%+*} == "$version" ]]; then
    return
  elif [[ $gpu == yes ]] || has_gpu; then
    pip_install "torch==$version"
  else
    say "no GPU here: looking for the CPU build of torch $version"
    pip_install "torch==$version+cpu" 2>/dev/null ||
      pip_install --retries 1 --timeout 30 --index-url "$index" "torch==$version" ||
      { say "$index did not give it; taking the plain build"; pip_install "torch==$version"; }
  fi
}

install_flash_attention() {
  local torch tried
  torch=$(installed_version torch) || torch=missing
  tried=$(dirname "$(dirname "$PY")")/flash-attn-not-built-for-torch-$torch
  if installed_version flash_attn >/dev/null; then
    return
  elif [[ $torch == *+cpu || $torch == missing ]] || ! command -v nvcc >/dev/null; then
    say "flash-attn is left out: it needs nvcc and a CUDA build of torch (here: torch $torch). Attention runs on PyTorch's SDPA."
  elif [[ -e $tried ]]; then
    say "flash-attn is left out: it could not be built before (remove $tried to try again). Attention runs on PyTorch's SDPA."
  else
    say "building flash-attn; this can take long"
    MAX_JOBS=${MAX_JOBS:-4} pip_install --no-build-isolation flash-attn && return
    : >"$tried"
    say "flash-attn could not be built (see above). Attention runs on PyTorch's SDPA."
  fi
}

# --- MuJoCo's system libraries -----------------------------------------------------------------------------------------

egl_loads() {
  "$1" -I - <<'PYTHON' 2>/dev/null
import ctypes
def loads(name):
    try:
        return bool(ctypes.CDLL(name))
    except OSError:
        return False
raise SystemExit(not (loads("libEGL.so.1") and (loads("libEGL_mesa.so.0") or loads("libEGL_nvidia.so.0"))))
PYTHON
}

apt_install() { # as root, or with sudo as the first argument
  say "installing MuJoCo's system libraries: $SYSTEM_PACKAGES"
  "$@" apt-get update -q && "$@" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $SYSTEM_PACKAGES
}

system_libraries() {
  [[ $(uname) == Linux && ${MUJOCO_GL:-egl} == egl ]] || return 0 # elsewhere, or by choice, MuJoCo renders another way
  egl_loads "$PY" && return
  if [[ $check == yes ]]; then say "missing: MuJoCo's system libraries ($SYSTEM_PACKAGES)"; incomplete=yes; return; fi
  if command -v apt-get >/dev/null; then
    if ((EUID == 0)); then
      apt_install && egl_loads "$PY" && return
    elif [[ $system == yes ]]; then
      command -v sudo >/dev/null || die "--system-packages needs sudo, which is not installed; run this as root"
      apt_install sudo && egl_loads "$PY" && return
    fi
  fi
  local advice="MuJoCo cannot render without EGL. Install it: sudo apt-get install -y $SYSTEM_PACKAGES
(or run this again with --system-packages; on other systems than Debian and Ubuntu: Mesa's EGL and its drivers)"
  cannot_render "$advice"
}

cannot_render() {
  if [[ $rendering == yes ]]; then die "$1"; fi
  warnings+=("$1")
}

renders() { # the proof, once MuJoCo is installed
  [[ $(uname) != Linux ]] || ! installed_version mujoco >/dev/null ||
    MUJOCO_GL=${MUJOCO_GL:-egl} "$PY" -c 'import mujoco; mujoco.GLContext(16, 16).free()' >/dev/null 2>&1
}

# -----------------------------------------------------------------------------------------------------------------------

say_done() {
  say "everything is in place: $PY"
  [[ $conda == yes ]] || say "to use it: source $(dirname "$PY")/activate"
}

main() {
  local lacking installed warnings=() incomplete=no warning
  parse_arguments "$@"
  if [[ $conda == yes ]]; then conda_environment; else virtual_environment; fi
  system_libraries
  lacking=$(missing "$extras" 2>&1) || [[ $lacking != error:* ]] || die "${lacking#error: }"
  if [[ $check == yes ]]; then
    [[ -z $lacking && $incomplete == no ]] && { say_done; return; }
    [[ -z $lacking ]] || sed 's/^/missing: /' <<<"$lacking"
    return 1
  fi
  if [[ -n $lacking ]]; then
    say "installing; an empty environment takes some minutes and 2.5 GB"
    install_torch || die "torch could not be installed; see above"
    pip_install -e "$ROOT[$extras]" || die "the packages could not be installed; see above. The same command goes on from here."
    renders || cannot_render "MuJoCo is installed but opens no rendering context; $PY -c 'import mujoco; mujoco.GLContext(16, 16)' says why"
  fi
  if [[ $gpu == yes ]]; then install_flash_attention; fi
  installed=$(installed_version torch) || installed=unknown
  if has_gpu && [[ $installed == *+cpu ]]; then
    warnings+=("there is a GPU, but torch $installed is a CPU build; for the CUDA build: $PY -m pip uninstall -y torch, then this again")
  fi
  for warning in ${warnings[@]+"${warnings[@]}"}; do printf 'note: %s\n' "$warning" >&2; done
  say_done
}

main "$@"
