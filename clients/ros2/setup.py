"""What `colcon build` installs: the package, its marker in the ament index, and the node's command."""

from setuptools import setup

NAME = "foreframe_ros2"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    package_data={NAME: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
    ],
    install_requires=["setuptools", "numpy", "pillow", "foreframe-client"],
    license="Apache-2.0",
    entry_points={"console_scripts": [f"predict = {NAME}.node:main"]},
)
