from setuptools import setup

NAME = "trace_vlm_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/point.launch.py"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="The trace-vlm contributors",
    maintainer_email="trace-vlm@example.org",
    description="A ROS 2 node that asks trace-vlm serve to point in a camera's pictures.",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"point_node = {NAME}.node:main"]},
)
