"""environment_setup.sh: names what is missing, installs in the right order, uses sudo only when asked."""

import os
import shutil
import subprocess
import sys

import pytest
from shell import BASH, ROOT, bash, executable, one_sentence, pins

LIBRARIES = "libegl1 libegl-mesa0 libgl1-mesa-dri"
TORCH = str(pins()["torch"])


@pytest.fixture
def bare(tmp_path):
    """A folder that alone can be a PATH: what every system has, and no Python."""
    (folder := tmp_path / "bare").mkdir()
    for name in filter(shutil.which, ("bash", "cat", "dirname", "env", "grep", "id", "sed", "uname")):
        (folder / name).symlink_to(shutil.which(name))
    return folder


def setup(bare, *arguments, **variables):
    variables = {"PATH": str(bare), "TRACE_VENV": str(bare.parent / "venv"), **variables}
    return bash("environment_setup.sh", *arguments, cwd=bare.parent, **variables)


def calls(bare):
    log = bare.parent / "calls"
    return log.read_text().splitlines() if log.exists() else []


def test_a_missing_interpreter_is_named_and_a_newer_one_is_taken(bare):
    assert "no interpreter" in one_sentence(setup(bare))
    assert "/no/python" in one_sentence(setup(bare, PYTHON="/no/python"))
    executable(bare / "python3", "echo 3.8.10")
    assert "python3 is 3.8.10" in one_sentence(setup(bare))
    (bare / "python3.11").symlink_to(sys.executable)
    done, missing = setup(bare, "--check"), f"missing: the virtual environment {bare.parent}/venv\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, missing, "")
    executable(bare / "python3", "if [[ $* == *version_info* ]]; then echo 3.12.1; else exit 1; fi")
    assert "python3-venv" in one_sentence(setup(bare))
    assert "conda" in one_sentence(setup(bare, "--conda"))
    broken = bare.parent / "venv/bin/python"
    broken.parent.mkdir(parents=True)
    broken.symlink_to("/no/longer/here")
    assert "venv" in one_sentence(setup(bare))


@pytest.mark.parametrize("argument", ["--gup", "--extras=tarin"])
def test_an_unknown_argument_is_named(tmp_path, argument):
    done = bash("environment_setup.sh", "--check", argument, cwd=tmp_path, TRACE_VENV=sys.prefix)
    assert argument.removeprefix("--extras=") in one_sentence(done)


@pytest.mark.parametrize("flags", [["--check"], ["--require-rendering"], ["--require-rendering", "--system-packages"]])
def test_missing_system_libraries_are_listed_and_sudo_is_used_only_when_asked(bare, flags):
    """The environment's Python cannot load EGL; apt-get and sudo record their calls."""
    forward = f'code=$({bare}/cat); [[ $code == *libEGL* ]] && exit 1; exec {sys.executable} -I - "${{@:3}}" <<<"$code"'
    executable(bare.parent / "venv/bin/python", f'if [[ $2 == - ]]; then {forward}; fi; exec {sys.executable} "$@"')
    for name in ("apt-get", "sudo"):
        executable(bare / name, f'echo "{name} $*" >>{bare.parent}/calls; exit 1')
    command = [BASH, str(ROOT / "environment_setup.sh"), *flags]
    if os.geteuid() == 0 and flags != ["--check"]:  # as another user; root installs without sudo
        user = [shutil.which("unshare") or "", "--user", "--map-user=1000"]
        if not user[0] or subprocess.run([*user, "true"], capture_output=True).returncode:
            pytest.skip("root, and no user namespaces")
        command = [*user, *command]
    environment = {"PATH": str(bare), "TRACE_VENV": str(bare.parent / "venv")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == (1 if flags == ["--check"] else 2) and LIBRARIES in done.stdout + done.stderr
    assert calls(bare) == (["sudo apt-get update -q"] if "--system-packages" in flags else [])


@pytest.fixture
def empty(bare):
    """An environment that has only pip, which records its calls and gets only the plain torch."""
    executable(bare.parent / "venv/bin/python", f"""case $* in
        *version_info*) echo 3.11.7 ;;
        "-m pip "*) echo "${{@:3}}" >>{bare.parent}/calls; [[ $* != *torch==*+cpu* && $* != *--index-url* ]]; exit ;;
        "-I - "*) {bare}/cat >/dev/null; echo torch ;;
        "-I -") {bare}/cat >/dev/null ;;
        *importlib.metadata*) exit 1 ;;
        esac""")  # fmt: skip
    return bare


def requested(bare):
    """What pip was asked for, without the flags that are always the same."""
    always = f"install --disable-pip-version-check -c {ROOT}/constraints.txt "
    assert all(call.startswith(always) for call in calls(bare))
    return [call.removeprefix(always) for call in calls(bare)]


def test_torch_is_looked_for_in_the_order_that_avoids_a_cuda_build(empty):
    assert setup(empty, TORCH_INDEX_URL="file:///wheels").returncode == 0
    second = f"--retries 1 --timeout 30 --index-url file:///wheels {TORCH}"
    assert requested(empty) == [f"{TORCH}+cpu", second, TORCH, f"-e {ROOT}[train,scenes]"]


def test_a_gpu_gets_the_plain_build_and_its_flag_adds_deepspeed(empty):
    executable(empty / "nvidia-smi", 'echo "GPU 0: NVIDIA H100"')
    assert setup(empty).returncode == 0
    assert requested(empty) == [TORCH, f"-e {ROOT}[train,scenes]"]
    done = setup(empty, "--gpu")
    assert (done.returncode, done.stderr) == (0, "") and "flash-attn" in done.stdout  # which it continues without
    assert f"-e {ROOT}[train,scenes,gpu]" in requested(empty)
    python = empty.parent / "venv/bin/python"
    python.write_text(python.read_text().replace("; exit ;;", "; exit 1 ;;"))
    done = setup(empty)  # a failing installation is no success
    assert done.returncode == 2 and "error: torch" in done.stderr


def test_conda_makes_its_environment_once(bare):
    python = bare.parent / "conda/bin/python"
    (bare / "ln").symlink_to(shutil.which("ln") or "/bin/ln")
    python.parent.mkdir(parents=True)
    cases = f"case $1 in create) ln -s {sys.executable} {python} ;; *) [[ -e {python} ]] && echo {python} ;; esac"
    executable(bare / "conda", f'echo "$1" >>{bare.parent}/calls; {cases}')
    assert setup(bare, "--conda", "--check").stdout == "missing: the conda environment trace\n"
    for _ in range(2):
        setup(bare, "--conda", "--extras", "no-such")  # the unknown extra stops it before anything is installed
    assert calls(bare) == ["run", "run", "create", "run", "run"]


def test_a_complete_environment_is_left_alone(tmp_path):
    done = bash("environment_setup.sh", "--check", "--dev", cwd=tmp_path, TRACE_VENV=sys.prefix)
    if done.returncode == 1:
        pytest.skip(f"a developer's environment that has moved away from constraints.txt: {done.stdout}")
    assert bash("environment_setup.sh", "--dev", cwd=tmp_path, TRACE_VENV=sys.prefix).stdout == done.stdout
