"""The folder is `trace/`, the installed name `trace_vlm`, and `trace` also a module of the standard library: every form
in which a user meets these names, each in a process of its own."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "trace"
MODULES = sorted(PACKAGE.rglob("*.py"))


def python(*arguments: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Standard output of `python ARGUMENTS`, run in `cwd` with `path` as its PYTHONPATH; the exit code must be 0."""
    return process(sys.executable, *arguments, cwd=cwd, path=path)


def process(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHONSAFE")}
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# --- the forms a command is typed in --------------------------------------------------------------


@pytest.mark.parametrize("module", ["eval.model_vqa", "eval.summarize_vqa", "train.train"])
def test_a_module_runs_from_the_root_under_the_name_of_its_folder(module: str) -> None:
    assert python("-m", f"trace.{module}", "--help", cwd=ROOT).startswith(f"usage: python -m trace.{module} ")


@pytest.mark.parametrize("script", ["trace/eval/model_vqa.py", "trace/eval/api_vqa.py", "trace/eval/summarize_vqa.py"])
@pytest.mark.parametrize("from_root", [True, False], ids=["root", "elsewhere"])
def test_the_published_commands_run_by_path(script: str, from_root: bool, tmp_path: Path) -> None:
    path = script if from_root else str(ROOT / script)
    assert python(path, "--help", cwd=ROOT if from_root else tmp_path).startswith(f"usage: {path} ")


def test_the_console_script_and_the_package_itself_run_from_anywhere(tmp_path: Path) -> None:
    overview = process(Path(sys.executable).parent / "trace-vlm", "--help", cwd=tmp_path)
    assert "usage: trace-vlm COMMAND" in overview
    assert python("-m", "trace_vlm", "--help", cwd=tmp_path) == overview
    assert python("-m", "trace", "--help", cwd=ROOT) == overview


# --- the standard library's trace -----------------------------------------------------------------

USED = "import trace; assert trace.Trace(count=1, trace=0).runfunc(lambda: 7) == 7; "


def test_elsewhere_trace_is_the_standard_librarys(tmp_path: Path) -> None:
    where = python("-c", USED + "import trace_vlm; print(trace.__file__); print(trace_vlm.__file__)", cwd=tmp_path)
    standard, ours = map(Path, where.split())
    assert standard == Path(sysconfig.get_path("stdlib"), "trace.py")
    assert ours.samefile(PACKAGE / "__init__.py")


def test_from_the_root_its_names_are_handed_through() -> None:
    code = USED + "from trace import CoverageResults; print(trace.__file__, CoverageResults.__name__)"
    where, name = python("-c", code, cwd=ROOT).split()
    assert (PACKAGE / "__init__.py").samefile(where)
    assert name == "CoverageResults"


@pytest.mark.parametrize("name", ["trace", "trace_vlm"])
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    code = f"import {name}\ntry: {name}.no_such_name\nexcept AttributeError as error: print(error)"
    assert python("-c", code, cwd=ROOT) == f"module '{name}' has no attribute 'no_such_name'\n"


def test_the_installed_name_has_nothing_of_the_standard_library(tmp_path: Path) -> None:
    assert python("-c", "import trace_vlm; print(hasattr(trace_vlm, 'Trace'))", cwd=tmp_path) == "False\n"


def test_importing_the_package_loads_none_of_its_modules(tmp_path: Path) -> None:
    code = "import sys; before = set(sys.modules); import trace_vlm; print(sorted(set(sys.modules) - before))"
    loaded = ast.literal_eval(python("-c", code, cwd=tmp_path))
    assert [name for name in loaded if "trace_vlm" in name and not name.startswith("__editable__")] == ["trace_vlm"]
    assert not {"torch", "numpy", "transformers"} & set(loaded)


@pytest.mark.parametrize("name", ["Box", "Point", "Prediction", "Predictor", "Response"])
def test_the_packages_own_names_are_found_when_asked_for(name: str) -> None:
    import trace_vlm

    assert getattr(trace_vlm, name).__name__ == name


# --- workers --------------------------------------------------------------------------------------

SPAWN = """
import multiprocessing
import {name}.core.points as points

def describe(point):
    return type(point).__module__, point.x

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(describe, (points.Point(0.25, 0.5),))
        print(*found, pool.apply(points.format_points, ([points.Point(0, 1)],)))
"""


def test_spawned_workers_find_the_package_from_anywhere(tmp_path: Path) -> None:
    script = tmp_path / "spawning.py"
    script.write_text(SPAWN.format(name="trace_vlm"))
    assert python(script, cwd=tmp_path) == "trace_vlm.core.points 0.25 [(0.000, 1.000)]\n"


def test_spawned_workers_find_the_package_under_the_folders_name(tmp_path: Path) -> None:
    (tmp_path / "spawning.py").write_text(SPAWN.format(name="trace"))
    # `-m` puts the root first on sys.path, as it does for `python -m trace.x`; PYTHONPATH brings the script.
    assert python("-m", "spawning", cwd=ROOT, path=tmp_path) == "trace.core.points 0.25 [(0.000, 1.000)]\n"


# --- what is installed ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built offline from a copy of the tree (a build leaves folders behind)."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    shutil.copytree(PACKAGE, source / "trace", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "trace/assets/__pycache__").mkdir()
    (source / "trace/assets/__pycache__/left_over.cpython-311.pyc").write_bytes(b"")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    python("-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", place, cwd=source)
    (built,) = place.glob("trace_vlm-*.whl")
    return built


def shipped() -> list[str]:
    """Every file of the package that users need, relative to it."""
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted(path.relative_to(PACKAGE).as_posix() for path in files)


def test_the_wheel_holds_every_module_and_every_asset_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(f"trace_vlm/{name}" for name in shipped())


def test_the_assets_stay_below_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in (PACKAGE / "assets").rglob("*") if path.is_file()) < 10e6


def test_the_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", target, wheel]
    python(*install, cwd=tmp_path)
    code = "import trace, trace_vlm; from trace_vlm.core.points import Point; print(trace_vlm.__file__, trace.__file__)"
    ours, standard = python("-c", code, cwd=tmp_path, path=target).split()
    assert Path(ours) == target / "trace_vlm/__init__.py"
    assert Path(standard) == Path(sysconfig.get_path("stdlib"), "trace.py")
    assert python("-m", "trace_vlm.eval.model_vqa", "--help", cwd=tmp_path, path=target).startswith("usage:")
    assert "usage: trace-vlm COMMAND" in process(target / "bin/trace-vlm", "--help", cwd=tmp_path, path=target)


def test_every_sub_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [path.parent.relative_to(PACKAGE).parts for path in PACKAGE.rglob("__init__.py")]
    assert sorted(listed) == sorted(".".join(("trace_vlm", *parts)) for parts in folders)
    assert not [path for path in MODULES if not (path.parent / "__init__.py").exists()]


# --- imports inside the package -------------------------------------------------------------------


def absolute_imports(source: str) -> list[str]:
    """The package's two names, where an import statement spells one out."""
    named: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            named.append(node.module or "")
    return [name for name in named if name.partition(".")[0] in ("trace", "trace_vlm")]


def test_the_scan_sees_each_form_of_an_absolute_import() -> None:
    seen = (
        "import trace.core.points\ndef f():\n    from trace import Point\nfrom trace_vlm.x import y\nimport trace_vlm"
    )
    assert sorted(absolute_imports(seen)) == ["trace", "trace.core.points", "trace_vlm", "trace_vlm.x"]
    assert absolute_imports("from . import trace\nfrom ..trace import x\nimport tracemalloc") == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_inside_the_package_are_relative(module: Path) -> None:
    assert absolute_imports(module.read_text()) == []
