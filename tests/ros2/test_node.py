"""The node on stand-ins for ROS 2: messages have the fields of their definitions, and no others."""

import copy
import importlib
import math
import re
import runpy
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import yaml
from ros_by_hand import ANSWER, FRAME, POINT, answering, camera_info, error, image
from shell import ROOT

INTERFACES = ROOT / "ros2/trace_vlm_interfaces"
# Of the messages of other packages, the fields that exist, as their documentation lists them.
MESSAGES = {
    "geometry_msgs": {
        "Point": "x y z",
        "Vector3": "x y z",
        "Pose": "position orientation",
        "PointStamped": "header point",
    },
    "std_msgs": {"Header": "stamp frame_id", "ColorRGBA": "r g b a"},
    "visualization_msgs": {
        "Marker": "header ns id type action pose scale color lifetime frame_locked points colors text",
        "MarkerArray": "markers",
    },
    "sensor_msgs": {"Image": "", "CameraInfo": ""},
}


def fields(definition):
    """Names and default values of a definition: `type name [default]` a line."""
    defaults = {"string": "", "bool": False, "uint8": 0, "float32": 0.0, "float64": 0.0}
    for line in definition.splitlines():
        if words := line.partition("#")[0].split():
            kind, name, *default = words
            value = [] if kind.endswith("[]") else SimpleNamespace() if "/" in kind else defaults[kind]
            yield name, {"true": True}[default[0]] if default else value


def message(name, known, **constants):
    """A message's class: no other fields, and as in rclpy an int is no float."""

    class Message:
        __slots__ = tuple(known)

        def __init__(self, **values):
            for field, value in {**copy.deepcopy(known), **values}.items():
                setattr(self, field, value)

        def __setattr__(self, field, value):
            expected = type(known.get(field))
            assert expected not in (str, bool, int, float, list) or type(value) is expected, (field, value)
            super().__setattr__(field, value)

    return type(name, (Message,), {"__slots__": (), **constants})


class Parent:
    """rclpy.node.Node: keeps what is created, publishes into lists."""

    parameters: dict = {}

    def __init__(self, name):
        self.name, self.published, self.logged = name, {}, []

    def declare_parameter(self, name, default):
        return SimpleNamespace(value=self.parameters.get(name, default))

    def resolve_topic_name(self, topic):
        return f"/{topic}"

    def create_publisher(self, kind, topic, depth):
        return SimpleNamespace(publish=self.published.setdefault(topic, []).append)

    def create_service(self, kind, name, callback, callback_group):
        self.called = callback
        return name

    def get_clock(self):
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=10.5e9))

    def get_logger(self):
        return SimpleNamespace(error=self.logged.append)


class Filter:
    """A subscriber or a synchronizer of message_filters."""

    def __init__(self, *arguments, **options):
        self.arguments = arguments

    def registerCallback(self, callback):
        self.deliver = callback


class TransformException(Exception):
    pass


class Transforms:
    """tf2_ros.Buffer: knows base_link, a quarter turn about z and one metre up from the camera."""

    def lookup_transform(self, target, source, time, timeout):
        if target != "base_link":
            raise TransformException(f'"{target}" does not exist')
        half = math.sqrt(0.5)
        up, turn = SimpleNamespace(x=0.0, y=0.0, z=1.0), SimpleNamespace(x=0.0, y=0.0, z=half, w=half)
        return SimpleNamespace(transform=SimpleNamespace(translation=up, rotation=turn))


class Goal:
    """rclpy's ServerGoalHandle."""

    def __init__(self, request, cancel=lambda: False):
        self.request, self.states, self.ended, self.cancel = request, [], None, cancel

    is_cancel_requested = property(lambda self: self.cancel())

    def publish_feedback(self, feedback):
        self.states.append(feedback.state)

    def __getattr__(self, name):
        assert name in ("succeed", "abort", "canceled")
        return lambda: setattr(self, "ended", name)


@pytest.fixture
def ros(monkeypatch):
    """The module of the node; what it imports from ROS 2 is replaced by stand-ins while the test runs."""

    def module(name, **contents):
        made = ModuleType(name)
        vars(made).update(contents)
        monkeypatch.setitem(sys.modules, name, made)

    def anything(*arguments, **options):
        return SimpleNamespace(arguments=arguments, **options)

    known = {}
    for path in INTERFACES.glob("*/*.*"):
        parts = re.split(r"^---$", path.read_text(), flags=re.MULTILINE)
        known[path.suffix, path.stem] = [message(path.stem, dict(fields(part))) for part in parts]
    (answer_point,), (step,) = known[".msg", "AnswerPoint"], known[".msg", "ReasoningStep"]
    service, action = known[".srv", "Point"], known[".action", "Point"]
    module("trace_vlm_interfaces.msg", AnswerPoint=answer_point, ReasoningStep=step)
    module("trace_vlm_interfaces.srv", Point=SimpleNamespace(Request=service[0], Response=service[1]))
    module("trace_vlm_interfaces.action", Point=SimpleNamespace(Goal=action[0], Result=action[1], Feedback=action[2]))
    for package, messages in MESSAGES.items():
        constants = {"Marker": {"SPHERE": 2, "TEXT_VIEW_FACING": 9, "DELETEALL": 3}}
        kinds = {name: message(name, dict.fromkeys(names.split()), **constants.get(name, {}))
                 for name, names in messages.items()}  # fmt: skip
        module(f"{package}.msg", **kinds)
    rclpy = ModuleType("rclpy")
    rclpy.ok = lambda: True
    monkeypatch.setitem(sys.modules, "rclpy", rclpy)
    module("rclpy.action", ActionServer=anything, CancelResponse=SimpleNamespace(ACCEPT="accept"))
    module("rclpy.callback_groups", ReentrantCallbackGroup=anything)
    module("rclpy.duration", Duration=anything)
    module("rclpy.executors", ExternalShutdownException=Exception, MultiThreadedExecutor=anything)
    module("rclpy.node", Node=Parent)
    module("rclpy.qos", qos_profile_sensor_data=None)
    module("rclpy.time", Time=SimpleNamespace(from_msg=anything))
    module("message_filters", ApproximateTimeSynchronizer=Filter, Subscriber=Filter)
    module("tf2_ros", Buffer=Transforms, TransformException=TransformException, TransformListener=anything)
    monkeypatch.delitem(sys.modules, "trace_vlm_ros.node", raising=False)
    monkeypatch.delenv("TRACE_API_KEY", raising=False)
    found = importlib.import_module("trace_vlm_ros.node")
    yield SimpleNamespace(module=found, Request=service[0], Response=service[1], Goal=action[0])
    del sys.modules["trace_vlm_ros.node"]


@pytest.fixture
def start(ros, monkeypatch):
    """`start(url, base_frame="base_link")`: a node that has got a picture, with these parameters."""

    def started(server, picture=True, **parameters):
        monkeypatch.setattr(Parent, "parameters", {"server": server, **parameters})
        node = ros.module.PointNode()
        if picture:
            depth = np.full((48, 64), 900, np.uint16)
            messages = image(np.zeros((48, 64, 3), np.uint8), "bgr8"), image(depth, "16UC1"), camera_info(64, 48)
            node.source.deliver(*messages if parameters.get("use_depth", True) else messages[:1])
        return node

    return started


def test_the_launch_file_has_the_nodes_parameters_and_topics(ros, monkeypatch):
    def made(*arguments, **options):
        return SimpleNamespace(arguments=arguments, **options)

    for name, contents in (("launch", ["LaunchDescription"]), ("launch.actions", ["DeclareLaunchArgument"]),
                           ("launch.substitutions", ["LaunchConfiguration"]), ("launch_ros", []),
                           ("launch_ros.actions", ["Node"]),
                           ("launch_ros.parameter_descriptions", ["ParameterValue"])):  # fmt: skip
        stub = ModuleType(name)
        vars(stub).update(dict.fromkeys(contents, made))
        monkeypatch.setitem(sys.modules, name, stub)
    launch = runpy.run_path(str(ROOT / "ros2/trace_vlm_ros/launch/point.launch.py"))
    (items,) = launch["generate_launch_description"]().arguments
    *declared, node = items
    defaults = {argument.arguments[0]: argument.default_value for argument in declared}
    (given,) = node.parameters
    assert given.keys() == ros.module.PARAMETERS.keys() and node.executable == "point_node"
    for name, value in ros.module.PARAMETERS.items():
        assert given[name].value_type is type(value)
        assert (yaml.safe_load(defaults[name]) or type(value)()) == value, name
    assert [name for name, _ in node.remappings] == ["image", "depth", "camera_info"]
    assert defaults.keys() == {*given, "image", "depth", "camera_info"}


LIFTED = {**POINT, "xyz": [0.1, 0.2, 0.9], "frame": "camera"}


def test_a_call_of_the_service(ros, start):
    second = {**LIFTED, "confidence": None, "xyz": None, "note": "no depth within 2 pixels of the point"}
    with answering((200, {**ANSWER, "points": [LIFTED, second]}, {})) as server:
        node = start(server.url, num_points=2)
        response = node.called(ros.Request(instruction="Point to the mug."), ros.Response())
    assert server.asked[0]["num_points"] == 2 and server.asked[0]["reasoning"] is True
    one, other = response.points
    assert (one.x, one.y, one.u, one.v, one.confidence, one.has_xyz) == (0.25, 0.5, 16.0, 24.0, 0.75, True)
    assert (one.point.point.x, one.point.point.y, one.point.point.z) == (0.1, 0.2, 0.9)
    assert one.point.header.frame_id == FRAME and one.point.header.stamp.sec == response.header.stamp.sec == 10
    assert not other.has_xyz and math.isnan(other.confidence) and other.note.startswith("no depth")
    assert [(step.step, step.title) for step in response.reasoning] == [("milestone", "Milestone")]
    assert (response.none, response.error, response.seconds) == (False, "", 0.5) and response.text.startswith("Final")
    (shown,) = node.published["~/markers"]
    clear, sphere, label = shown.markers
    assert (clear.action, sphere.type, label.type, label.text) == (3, 2, 9, "0.75") and sphere.id != label.id
    assert sphere.pose.position.y == 0.2 and label.pose.position.y < 0.2 and sphere.header.frame_id == FRAME
    assert node.published["~/positions"] == [one.point]


def test_a_goal_of_the_action_in_the_base_frame(ros, start, monkeypatch):
    monkeypatch.setenv("TRACE_API_KEY", "secret")
    with answering((200, {**ANSWER, "points": [{**LIFTED, "frame": "base"}]}, {})) as server:
        node = start(server.url, base_frame="base_link", reasoning=False)
        goal = Goal(ros.Goal(instruction="Point to the mug.", num_points=4))
        result = node.action.arguments[3](goal)
    assert goal.ended == "succeed" and goal.states == ["encoding the picture", "waiting for the server"]
    assert result.points[0].point.header.frame_id == "base_link" and server.keys == ["Bearer secret"]
    assert server.asked[0]["num_points"] == 4 and server.asked[0]["reasoning"] is False
    assert np.allclose(server.asked[0]["extrinsics"], [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]])


def test_a_goal_is_cancelled_or_aborted(ros, start):
    with answering((None, None, {}), error(504, "too late")) as server:
        node = start(server.url)
        goal = Goal(ros.Goal(instruction="Point to the mug."), cancel=lambda: bool(server.asked))
        assert "cancelled" in node.action.arguments[3](goal).error and goal.ended == "canceled"
        goal = Goal(ros.Goal(instruction="Point to the mug."))
        assert "too late" in node.action.arguments[3](goal).error and goal.ended == "abort"
    assert node.action.cancel_callback(goal) == "accept"


def test_what_is_wrong_is_told_in_the_answer(ros, start):
    with answering() as server:
        blind = start(server.url, picture=False)
        lost = start(server.url, base_frame="map")
        old = start(server.url, max_age=0.1)
        for node, words in ((blind, "no picture has arrived yet on /image, /depth, /camera_info"),
                            (lost, f"no transform from {FRAME} to map"), (old, "0.5 s old")):  # fmt: skip
            response = node.called(ros.Request(instruction="Point to the mug."), ros.Response())
            assert words in response.error and response.points == [] and node.logged == [response.error]
        assert server.asked == []


def test_without_depth_only_the_picture_is_needed(ros, start):
    with answering() as server:
        node = start(server.url, use_depth=False, base_frame="base_link")
        response = node.called(ros.Request(instruction="Point to the mug."), ros.Response())
    assert node.source.arguments[2] == "image" and "depth" not in server.asked[0]
    assert [point.has_xyz for point in response.points] == [False]
    assert [marker.action for marker in node.published["~/markers"][0].markers] == [3]
