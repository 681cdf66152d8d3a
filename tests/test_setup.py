"""environment_setup.sh: says what is missing, installs in the right order, takes no rights that nobody gave it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shell import BASH, ROOT, bash, executable, one_sentence, pins

BASICS = ("bash", "cat", "dirname", "env", "grep", "id", "sed", "uname")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder that alone can be a PATH: what every system has, and no Python."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in BASICS:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder


def setup(bare: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    variables.setdefault("TRACE_VENV", str(bare.parent / "venv"))
    return bash("environment_setup.sh", *arguments, cwd=bare.parent, **{"PATH": str(bare), **variables})


def test_a_python_that_is_too_old_is_named(bare: Path) -> None:
    executable(bare / "python3", "echo 3.8.10")
    said = one_sentence(setup(bare))
    assert "Python 3.11 or newer is needed; python3 is 3.8.10" in said
    assert "PYTHON=/path/to/python3.11" in said
    assert not (bare.parent / "venv").exists()


def test_a_newer_python_under_another_name_is_taken(bare: Path) -> None:
    executable(bare / "python3", "echo 3.8.10")
    (bare / "python3.11").symlink_to(sys.executable)
    done = setup(bare, "--check")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == f"missing: the virtual environment {bare.parent}/venv\n"


def test_no_python_at_all_is_said(bare: Path) -> None:
    assert "no interpreter was found" in one_sentence(setup(bare))
    assert "no interpreter was found as /no/python" in one_sentence(setup(bare, PYTHON="/no/python"))


def test_a_missing_venv_module_is_said(bare: Path) -> None:
    executable(bare / "python3", "if [[ $* == *version_info* ]]; then echo 3.12.1; else exit 1; fi")
    assert "apt-get install python3-venv" in one_sentence(setup(bare))


def test_a_missing_conda_is_said(bare: Path) -> None:
    assert "conda is not on the PATH" in one_sentence(setup(bare, "--conda"))


@pytest.mark.parametrize(("argument", "said"), [("--gup", "does not know --gup"), ("--extras=tarin", "no extra tarin")])
def test_an_unknown_argument_is_said(argument: str, said: str, tmp_path: Path) -> None:
    done = bash("environment_setup.sh", "--check", argument, cwd=tmp_path, TRACE_VENV=sys.prefix)
    assert said in one_sentence(done)


def test_an_environment_whose_python_is_gone_is_said(bare: Path) -> None:
    broken = bare.parent / "venv/bin/python"
    broken.parent.mkdir(parents=True)
    broken.symlink_to("/no/longer/here")
    assert "does not start" in one_sentence(setup(bare))


@pytest.fixture
def without_egl(bare: Path) -> Path:
    """As `bare`, with an environment whose Python cannot load EGL, and an apt-get and a sudo that tell on their use."""
    forward = f'code=$({bare}/cat); [[ $code == *libEGL* ]] && exit 1; exec {sys.executable} -I - "${{@:3}}" <<<"$code"'
    executable(bare.parent / "venv/bin/python", f'if [[ $2 == - ]]; then {forward}; fi; exec {sys.executable} "$@"')
    for name in ("apt-get", "sudo"):
        executable(bare / name, f'echo "{name} $*" >>{bare.parent}/calls; exit 1')
    return bare


def calls(bare: Path) -> list[str]:
    file = bare.parent / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_missing_system_libraries_are_listed_and_nothing_is_installed(without_egl: Path) -> None:
    done = setup(without_egl, "--check")
    assert "missing: MuJoCo's system libraries (libegl1 libegl-mesa0 libgl1-mesa-dri)\n" in done.stdout
    assert done.returncode == 1
    assert calls(without_egl) == []


def as_a_user_without_rights(command: list[str]) -> list[str]:
    """The command as somebody else than root; the test is skipped where that cannot be had."""
    if os.geteuid() != 0:
        return command
    wrapped = [shutil.which("unshare") or "", "--user", "--map-user=1000"]
    if not wrapped[0] or subprocess.run([*wrapped, "true"], capture_output=True).returncode:
        pytest.skip("root, and no user namespaces to be somebody else in")
    return [*wrapped, *command]


@pytest.mark.parametrize("asked", [False, True], ids=["not asked for", "--system-packages"])
def test_sudo_is_only_used_when_asked_for(without_egl: Path, asked: bool) -> None:
    command = [BASH, str(ROOT / "environment_setup.sh"), "--require-rendering"]
    command = as_a_user_without_rights([*command, "--system-packages"] if asked else command)
    environment = {"PATH": str(without_egl), "TRACE_VENV": str(without_egl.parent / "venv")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "sudo apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri" in done.stderr
    assert calls(without_egl) == (["sudo apt-get update -q"] if asked else [])


@pytest.fixture
def empty(bare: Path) -> Path:
    """As `bare`, with an environment that has only pip, which notes its calls and gets only the plain torch."""
    pip = f"""echo "${{@:3}}" >>{bare.parent}/calls; [[ $* != *torch==*+cpu* && $* != *--index-url* ]]; exit"""
    executable(
        bare.parent / "venv/bin/python",
        f"""case $* in
          *version_info*) echo 3.11.7 ;;
          "-m pip "*) {pip} ;;
          "-I - "*) {bare}/cat >/dev/null; echo torch ;;
          "-I -") {bare}/cat >/dev/null ;;
          *importlib.metadata*) exit 1 ;;
        esac""",
    )
    return bare


def wanted(bare: Path) -> list[str]:
    """What pip was asked for, without the flags that are always the same."""
    always = f"install --disable-pip-version-check -c {ROOT}/constraints.txt "
    assert all(call.startswith(always) for call in calls(bare))
    return [call.removeprefix(always) for call in calls(bare)]


def test_torch_is_looked_for_in_the_order_that_avoids_a_cuda_build(empty: Path) -> None:
    assert setup(empty).returncode == 0
    pin = str(pins()["torch"])
    assert wanted(empty) == [
        f"{pin}+cpu",
        f"--retries 1 --timeout 30 --index-url https://download.pytorch.org/whl/cpu {pin}",
        pin,
        f"-e {ROOT}[train,scenes]",
    ]


def test_the_index_of_cpu_builds_can_be_another(empty: Path) -> None:
    assert setup(empty, TORCH_INDEX_URL="file:///wheels").returncode == 0
    assert "--index-url file:///wheels" in wanted(empty)[1]


def test_with_a_gpu_the_plain_build_is_taken(empty: Path) -> None:
    executable(empty / "nvidia-smi", 'echo "GPU 0: NVIDIA H100"')
    assert setup(empty).returncode == 0
    assert wanted(empty) == [str(pins()["torch"]), f"-e {ROOT}[train,scenes]"]


def test_the_gpu_flag_adds_deepspeed_and_goes_on_without_flash_attention(empty: Path) -> None:
    done = setup(empty, "--gpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert wanted(empty)[-1] == f"-e {ROOT}[train,scenes,gpu]"
    assert "flash-attn is left out" in done.stdout


def test_a_failing_installation_is_no_success(empty: Path) -> None:
    python = empty.parent / "venv/bin/python"
    python.write_text(python.read_text().replace("; exit ;;", "; exit 1 ;;"))
    done = setup(empty)
    assert done.returncode == 2
    assert "error: torch could not be installed" in done.stderr


def test_conda_makes_its_environment_once(bare: Path) -> None:
    made = bare.parent / "conda/bin/python"
    (bare / "ln").symlink_to(shutil.which("ln") or "/bin/ln")
    (made.parent).mkdir(parents=True)
    create = f"ln -s {sys.executable} {made}"
    executable(
        bare / "conda",
        f'echo "$1" >>{bare.parent}/calls; case $1 in create) {create} ;; *) [[ -e {made} ]] && echo {made} ;; esac',
    )
    assert setup(bare, "--conda", "--check").stdout == "missing: the conda environment trace\n"
    setup(bare, "--conda", "--extras", "no-such")  # the unknown extra stops it before anything is installed
    setup(bare, "--conda", "--extras", "no-such")
    assert calls(bare) == ["run", "run", "create", "run", "run"]


def test_a_look_at_what_is_there_is_quick_and_when_all_is_there_nothing_is_done(tmp_path: Path) -> None:
    started = time.monotonic()
    done = bash("environment_setup.sh", "--check", "--dev", cwd=tmp_path, TRACE_VENV=sys.prefix)
    assert time.monotonic() - started < 3
    if done.returncode == 1:  # a developer's environment that has moved away from constraints.txt
        assert all(line.startswith("missing: ") for line in done.stdout.splitlines())
        return
    assert done.stdout == f"everything is in place: {sys.prefix}/bin/python\n"
    started = time.monotonic()
    again = bash("environment_setup.sh", "--dev", cwd=tmp_path, TRACE_VENV=sys.prefix)
    assert time.monotonic() - started < 3
    assert again.stdout == done.stdout
