"""The files of the ROS packages agree with each other and with the layout that colcon expects."""

import ast
import re
import subprocess
import sys
import tomllib
from xml.etree import ElementTree

import pytest
from shell import ROOT

import trace_vlm

NODE, INTERFACES = ROOT / "ros2/trace_vlm_ros", ROOT / "ros2/trace_vlm_interfaces"
STANDARD = {"__future__", *sys.stdlib_module_names}


def manifest(package):
    return ElementTree.parse(package / "package.xml").getroot()


def depends(package):
    return {element.text for element in manifest(package) if element.tag.endswith("depend")}


@pytest.mark.parametrize("package, kind", [(NODE, "ament_python"), (INTERFACES, "ament_cmake")])
def test_a_manifest_names_its_package_its_version_and_its_kind(package, kind):
    root = manifest(package)
    assert root.tag == "package" and root.get("format") == "3" and root.findtext("name") == package.name
    assert root.findtext("version") == trace_vlm.__version__ and root.findtext("export/build_type") == kind
    assert all(root.findtext(tag) for tag in ("description", "maintainer", "license"))
    assert "@" in root.find("maintainer").get("email")


def test_every_interface_is_built_and_has_valid_fields():
    cmake = (INTERFACES / "CMakeLists.txt").read_text()
    files = sorted(path.relative_to(INTERFACES).as_posix() for path in INTERFACES.glob("*/*.*"))
    assert sorted(re.findall(r'"(\w+/\w+\.\w+)"', cmake)) == files and len(files) == 4
    packages = set(re.search(r"DEPENDENCIES (.+)", cmake)[1].split())
    assert packages | {"ament_cmake", "rosidl_default_generators"} == set(re.findall(r"find_package\((\w+)", cmake))
    assert packages | {"rosidl_default_generators", "rosidl_default_runtime", "ament_cmake"} <= depends(INTERFACES)
    assert manifest(INTERFACES).findtext("member_of_group") == "rosidl_interface_packages"
    own, used = {path.stem for path in INTERFACES.glob("msg/*.msg")}, set()
    for path in INTERFACES.glob("*/*.*"):
        parts = re.split(r"^---$", path.read_text(), flags=re.MULTILINE)
        assert len(parts) == {".msg": 1, ".srv": 2, ".action": 3}[path.suffix]
        for part in parts:
            lines = [words for line in part.splitlines() if (words := line.partition("#")[0].split())]
            for kind, name, *default in lines:
                assert re.fullmatch(r"[a-z](_?[a-z0-9])*", name) and default in ([], ["true"])
                base = kind.removesuffix("[]")
                used |= {base.partition("/")[0]} if "/" in base else set()
                assert base in {"string", "bool", "uint8", "float32", "float64"} | own or "/" in base
            assert len({name for _, name, *_ in lines}) == len(lines)
    assert used == packages


def test_the_service_and_the_action_ask_and_answer_the_same():
    service, action = (re.split(r"^---$", (INTERFACES / name).read_text(), flags=re.MULTILINE)
                       for name in ("srv/Point.srv", "action/Point.action"))  # fmt: skip
    bare = [[line.partition("#")[0].strip() for line in part.splitlines()] for part in (*service, *action[:2])]
    assert [list(filter(None, part)) for part in bare[:2]] == [list(filter(None, part)) for part in bare[2:]]


def test_the_package_is_installed_as_the_ament_index_expects(tmp_path):
    command = ["setup.py", "-q", "build", "-b", tmp_path / "build", "egg_info", "-e", tmp_path, "install",
               "--root", tmp_path, "--prefix", "/ros", "--record", tmp_path / "record.txt"]  # fmt: skip
    done = subprocess.run([sys.executable, *map(str, command)], cwd=NODE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    installed = (tmp_path / "record.txt").read_text()
    for path in ("share/ament_index/resource_index/packages/trace_vlm_ros", "share/trace_vlm_ros/package.xml",
                 "share/trace_vlm_ros/launch/point.launch.py", "lib/trace_vlm_ros/point_node"):  # fmt: skip
        assert f"/ros/{path}\n" in installed and (tmp_path / "ros" / path).exists()
    assert "/trace_vlm_ros/node.py\n" in installed
    assert not list(NODE.glob("*.egg-info")) and not (NODE / "build").exists()


def test_what_is_imported_is_a_dependency_and_runs_on_the_python_of_humble():
    imported = set()
    for path in NODE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 10))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported |= {name.partition(".")[0] for name in names}
    imported -= STANDARD | {"setuptools"}
    names = {"numpy": "python3-numpy", "tf2_ros": "tf2_ros_py"}
    assert {names.get(name, name) for name in imported} == depends(NODE)
    assert len((NODE / "trace_vlm_ros/node.py").read_text().splitlines()) < 150


def test_the_main_package_does_without_ros():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needs = [need for group in (project["project"]["dependencies"], *project["project"]["optional-dependencies"].values())
             for need in group]  # fmt: skip
    assert not [need for need in needs if re.match(r"(rclpy|ros|tf2|sensor.msgs|message.filters)", need)]
    assert all(name.startswith("trace_vlm") and "ros" not in name for name in project["tool"]["setuptools"]["packages"])
