"""A ROS 2 node that keeps the newest picture of a camera and asks `trace-vlm serve` about it; see ros2/README.md.

    ros2 launch trace_vlm_ros point.launch.py image:=/camera/color/image_raw

The key of the server, if it has one, comes from the environment variable TRACE_API_KEY.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import rclpy
from geometry_msgs.msg import Point as Position
from geometry_msgs.msg import PointStamped, Pose, Vector3
from message_filters import ApproximateTimeSynchronizer, Subscriber
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import ColorRGBA, Header
from tf2_ros import Buffer, TransformException, TransformListener
from trace_vlm_interfaces.action import Point as PointAction
from trace_vlm_interfaces.msg import AnswerPoint, ReasoningStep
from trace_vlm_interfaces.srv import Point as PointService
from visualization_msgs.msg import Marker, MarkerArray

from .client import Base, Cancelled, PointClient, View, pose_of
from .images import QuestionError

THREADS = 8  # questions that wait for the server, beside the subscriptions
TRANSFORM_SECONDS = 0.5  # to wait for the transform at a picture's time
DIAMETER, LETTERS = 0.03, 0.04  # metres, of the markers

PARAMETERS = {
    "server": "http://127.0.0.1:8000", "timeout": 60.0, "max_age": 2.0, "max_skew": 0.05, "rectified": False,
    "use_depth": True, "base_frame": "", "num_points": 0, "reasoning": True,
}  # fmt: skip


class PointNode(Node):
    """Subscribes to image, depth and camera info; offers the service and the action `~/point`."""

    def __init__(self) -> None:
        super().__init__("trace_vlm")
        values = {name: self.declare_parameter(name, default).value for name, default in PARAMETERS.items()}
        self.settings = settings = SimpleNamespace(**values)
        self.client = PointClient(
            settings.server, os.environ.get("TRACE_API_KEY"), settings.timeout, settings.max_age, settings.max_skew,
            settings.rectified,
        )  # fmt: skip
        self.view: View | None = None
        self.transforms = Buffer()
        self.listener = TransformListener(self.transforms, self)
        inputs = {"image": Image, **({"depth": Image, "camera_info": CameraInfo} if settings.use_depth else {})}
        self.topics = ", ".join(map(self.resolve_topic_name, inputs))
        filters = [Subscriber(self, kind, topic, qos_profile=qos_profile_sensor_data) for topic, kind in inputs.items()]
        self.source = ApproximateTimeSynchronizer(filters, 10, settings.max_skew) if settings.use_depth else filters[0]
        self.source.registerCallback(self.keep)
        self.markers = self.create_publisher(MarkerArray, "~/markers", 1)
        self.positions = self.create_publisher(PointStamped, "~/positions", 10)
        group = ReentrantCallbackGroup()  # a question blocks its thread until the server answers
        self.service = self.create_service(PointService, "~/point", self.serve, callback_group=group)
        self.action = ActionServer(
            self, PointAction, "~/point", self.execute, callback_group=group,
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
        )  # fmt: skip

    def keep(self, *messages: Any) -> None:
        self.view = View(*messages)

    def serve(self, request: Any, response: Any) -> Any:
        self.answer(request, response, cancelled=lambda: not rclpy.ok())
        return response

    def execute(self, goal: Any) -> Any:
        result, feedback = PointAction.Result(), PointAction.Feedback
        self.answer(
            goal.request, result, on_state=lambda state: goal.publish_feedback(feedback(state=state)),
            cancelled=lambda: goal.is_cancel_requested or not rclpy.ok(),
        )  # fmt: skip
        (goal.canceled if goal.is_cancel_requested else goal.abort if result.error else goal.succeed)()
        return result

    def answer(self, request: Any, result: Any, **callbacks: Any) -> None:
        """Fill in the response of the service or the result of the action; what is wrong goes to `error`."""
        view, settings, now = self.view, self.settings, self.get_clock().now().nanoseconds * 1e-9
        try:
            if view is None:
                raise QuestionError(f"no picture has arrived yet on {self.topics}: are they published, in step?")
            result.header = view.image.header
            count, reasoning = request.num_points or settings.num_points, request.reasoning and settings.reasoning
            answer = self.client.ask(view, request.instruction, count, reasoning, self.base(view), now, **callbacks)
        except (QuestionError, Cancelled) as error:
            result.error = str(error)
            self.get_logger().error(result.error)
            return
        for point in answer.points:
            item = AnswerPoint(x=point.x, y=point.y, u=point.u, v=point.v, confidence=point.confidence, note=point.note)
            item.point.header = Header(frame_id=point.frame_id, stamp=result.header.stamp)
            if point.xyz is not None:
                item.has_xyz, item.point.point = True, Position(x=point.xyz[0], y=point.xyz[1], z=point.xyz[2])
            result.points.append(item)
        result.none, result.text, result.seconds = answer.none, answer.text, answer.seconds
        result.reasoning = [ReasoningStep(step=key, title=title, text=text) for key, title, text in answer.reasoning]
        self.show(result.points)

    def base(self, view: View) -> Base | None:
        """The camera's pose in the base frame when the picture was taken. QuestionError: tf2 does not know it."""
        base, header = self.settings.base_frame, view.image.header
        if not base or view.depth is None:
            return None
        time, wait = Time.from_msg(header.stamp), Duration(seconds=TRANSFORM_SECONDS)
        try:
            found = self.transforms.lookup_transform(base, header.frame_id, time, timeout=wait)
        except TransformException as error:
            raise QuestionError(f"tf2 has no transform from {header.frame_id} to {base}: {error}") from None
        return Base(base, pose_of(found.transform))

    def show(self, points: list[Any]) -> None:
        """Publish the points in space, and a sphere with its confidence for each in place of the last answer's."""
        markers, red = [Marker(action=Marker.DELETEALL)], ColorRGBA(r=1.0, g=0.2, b=0.2, a=1.0)
        down, up = (0.0, LETTERS) if self.settings.base_frame else (-LETTERS, 0.0)  # a camera's y points down
        for index, item in enumerate(item for item in points if item.has_xyz):
            self.positions.publish(item.point)
            at, text = item.point.point, "?" if math.isnan(item.confidence) else f"{item.confidence:.2f}"
            above = Position(x=at.x, y=at.y + down, z=at.z + up)
            for kind, where, size in ((Marker.SPHERE, at, DIAMETER), (Marker.TEXT_VIEW_FACING, above, LETTERS)):
                mark = Marker(header=item.point.header, type=kind, id=10 * index + kind, color=red, text=text)
                mark.pose, mark.scale = Pose(position=where), Vector3(x=size, y=size, z=size)
                markers.append(mark)
        self.markers.publish(MarkerArray(markers=markers))


def main() -> None:
    rclpy.init()
    node, executor = PointNode(), MultiThreadedExecutor(THREADS)
    executor.add_node(node)
    with suppress(KeyboardInterrupt, ExternalShutdownException):
        executor.spin()
    node.destroy_node()
    rclpy.try_shutdown()
