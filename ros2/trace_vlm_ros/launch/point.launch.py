"""Start the node on a camera's topics.

ros2 launch trace_vlm_ros point.launch.py image:=/camera/color/image_raw base_frame:=base_link
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

# The topics of a RealSense camera with aligned depth.
TOPICS = {
    "image": ("/camera/camera/color/image_raw", "the picture"),
    "depth": ("/camera/camera/aligned_depth_to_color/image_raw", "depth, registered to the picture"),
    "camera_info": ("/camera/camera/color/camera_info", "the picture's camera"),
}
PARAMETERS = {
    "server": ("http://127.0.0.1:8000", str, "address of trace-vlm serve; its key is taken from TRACE_API_KEY"),
    "base_frame": ("", str, "frame of the points in space; empty: the camera's optical frame"),
    "use_depth": ("true", bool, "whether to subscribe to depth and camera info"),
    "rectified": ("false", bool, "whether the picture is rectified: P of camera info holds, not K"),
    "num_points": ("0", int, "points where the request has 0; 0: as many as the model gives"),
    "reasoning": ("true", bool, "false: never reason in words before pointing"),
    "timeout": ("60.0", float, "seconds for a question"),
    "max_age": ("2.0", float, "seconds; older pictures are refused"),
    "max_skew": ("0.05", float, "seconds between picture, depth and camera info"),
}


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, *_, description) in {**TOPICS, **PARAMETERS}.items()
    ]
    node = Node(
        package="trace_vlm_ros",
        executable="point_node",
        name="trace_vlm",
        output="screen",
        parameters=[
            {name: ParameterValue(LaunchConfiguration(name), value_type=kind)
             for name, (_, kind, _) in PARAMETERS.items()}
        ],
        remappings=[(name, LaunchConfiguration(name)) for name in TOPICS],
    )  # fmt: skip
    return LaunchDescription([*arguments, node])
