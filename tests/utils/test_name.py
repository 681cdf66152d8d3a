"""The folder is `trace/`, the installed name `trace_vlm`, and `trace` also a module of the standard library: every form
in which a user meets these names, each in a process of its own."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "trace"
MODULES = sorted(PACKAGE.rglob("*.py"))
STANDARD = Path(sysconfig.get_path("stdlib"), "trace.py")


def process(*command, cwd, path=None):
    """Standard output of a command, run in `cwd` with `path` as its PYTHONPATH; the exit code must be 0."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python(*arguments, **options):
    return process(sys.executable, *arguments, **options)


@pytest.mark.parametrize("module", ["eval.model_vqa", "eval.summarize_vqa", "eval.api_vqa", "train.train"])
def test_the_published_commands_run_under_the_name_of_their_folder_and_by_path(module, tmp_path):
    assert python("-m", f"trace.{module}", "--help", cwd=ROOT).startswith(f"usage: python -m trace.{module} ")
    script = f"trace/{module.replace('.', '/')}.py"
    for path, cwd in ((script, ROOT), (ROOT / script, tmp_path)):
        if module.startswith("eval."):  # training is published as a module
            assert python(path, "--help", cwd=cwd).startswith(f"usage: {path} ")


def test_the_console_script_and_the_package_itself_run_from_anywhere(tmp_path):
    overview = process(Path(sys.executable).parent / "trace-vlm", "--help", cwd=tmp_path)
    assert "usage: trace-vlm COMMAND" in overview
    assert python("-m", "trace_vlm", "--help", cwd=tmp_path) == overview == python("-m", "trace", "--help", cwd=ROOT)


def test_the_standard_librarys_trace_is_itself_elsewhere_and_handed_through_from_the_root(tmp_path):
    used = "import trace; assert trace.Trace(count=1, trace=0).runfunc(lambda: 7) == 7; "
    code = "import trace_vlm; print(trace.__file__, trace_vlm.__file__, hasattr(trace_vlm, 'Trace'))"
    standard, ours, mixed = python("-c", used + code, cwd=tmp_path).split()
    assert Path(standard) == STANDARD and Path(ours).samefile(PACKAGE / "__init__.py") and mixed == "False"
    code = "from trace import CoverageResults; print(trace.__file__, CoverageResults.__name__)"
    path, name = python("-c", used + code, cwd=ROOT).split()
    assert (PACKAGE / "__init__.py").samefile(path) and name == "CoverageResults"


@pytest.mark.parametrize("name", ["trace", "trace_vlm"])
def test_an_unknown_name_is_an_attribute_error(name):
    code = f"import {name}\ntry: {name}.no_such_name\nexcept AttributeError as error: print(error)"
    assert python("-c", code, cwd=ROOT) == f"module '{name}' has no attribute 'no_such_name'\n"


def test_importing_the_package_loads_none_of_its_modules(tmp_path):
    code = "import sys; before = set(sys.modules); import trace_vlm; print(sorted(set(sys.modules) - before))"
    loaded = ast.literal_eval(python("-c", code, cwd=tmp_path))
    assert [name for name in loaded if "trace_vlm" in name and not name.startswith("__editable__")] == ["trace_vlm"]
    assert not {"torch", "numpy", "transformers"} & set(loaded)


@pytest.mark.parametrize("name", ["Box", "Point", "Prediction", "Predictor", "Response"])
def test_the_packages_own_names_are_found_when_asked_for(name):
    import trace_vlm

    assert getattr(trace_vlm, name).__name__ == name


SPAWN = """
import multiprocessing
import trace.core.points as points

def describe(point):
    return type(point).__module__, point.x

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.apply(describe, (points.Point(0.25, 0.5),)))
"""


def test_spawned_workers_find_the_package_under_the_name_of_its_folder(tmp_path):
    """`-m` puts the root first on sys.path, as it does for `python -m trace.x`; PYTHONPATH brings the script."""
    (tmp_path / "spawning.py").write_text(SPAWN)
    assert python("-m", "spawning", cwd=ROOT, path=tmp_path) == "trace.core.points 0.25\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built offline from a copy of the tree (a build leaves folders behind)."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(PACKAGE, source / "trace", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "trace/assets/__pycache__").mkdir()
    (source / "trace/assets/__pycache__/left_over.cpython-311.pyc").write_bytes(b"")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    python("-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", folder, cwd=source)
    (built,) = folder.glob("trace_vlm-*.whl")
    return built


def test_the_wheel_holds_every_module_and_every_asset_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sorted(names) == sorted(f"trace_vlm/{path.relative_to(PACKAGE).as_posix()}" for path in files)
    assert sum(path.stat().st_size for path in files if path.is_relative_to(PACKAGE / "assets")) < 15e6


def test_the_installed_wheel_runs(wheel, tmp_path):
    target = tmp_path / "installed"
    python("-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", target, wheel, cwd=tmp_path)
    code = "import trace, trace_vlm; from trace_vlm.core.points import Point; print(trace_vlm.__file__, trace.__file__)"
    ours, standard = python("-c", code, cwd=tmp_path, path=target).split()
    assert Path(ours) == target / "trace_vlm/__init__.py" and Path(standard) == STANDARD
    assert python("-m", "trace_vlm.eval.model_vqa", "--help", cwd=tmp_path, path=target).startswith("usage:")
    assert "usage: trace-vlm COMMAND" in process(target / "bin/trace-vlm", "--help", cwd=tmp_path, path=target)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_inside_the_package_are_relative(module):
    """Under either name a module imports its neighbours; none is loaded twice."""
    nodes = list(ast.walk(ast.parse(module.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
    assert not {name.partition(".")[0] for name in names} & {"trace", "trace_vlm"}
    assert (module.parent / "__init__.py").exists()
