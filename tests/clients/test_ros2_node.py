"""The node's wiring, with stand-ins for ROS' own modules: what it subscribes to, asks the server, and publishes."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import httpx
import numpy as np
import pytest

from foreframe_client import Client

NAMES = {
    "rclpy": (), "rclpy.callback_groups": ("MutuallyExclusiveCallbackGroup",), "rclpy.duration": ("Duration",),
    "rclpy.executors": ("MultiThreadedExecutor",), "rclpy.node": ("Node",), "rclpy.qos": ("qos_profile_sensor_data",),
    "rclpy.time": ("Time",), "sensor_msgs": (), "sensor_msgs.msg": ("CompressedImage", "Image", "JointState"),
    "std_msgs": (), "std_msgs.msg": ("Float32MultiArray",), "trajectory_msgs": (),
    "trajectory_msgs.msg": ("JointTrajectory",),
}  # fmt: skip


class Message(SimpleNamespace):
    def __init__(self, **fields):
        super().__init__(header=SimpleNamespace(stamp=None, frame_id=""), **fields)


class Nanoseconds:
    def __init__(self, nanoseconds):
        self.nanoseconds = nanoseconds

    def __add__(self, other):
        return Nanoseconds(self.nanoseconds + other.nanoseconds)

    def to_msg(self):
        return SimpleNamespace(sec=self.nanoseconds // 10**9, nanosec=self.nanoseconds % 10**9)


class Node:
    """Keeps what a node is told and gives parameters the values of a launch file."""

    def __init__(self, **parameters):
        self.parameters, self.takers, self.published, self.complaints = parameters, {}, {}, []

    def declare_parameter(self, name, value):
        return SimpleNamespace(value=self.parameters.get(name, value))

    def create_publisher(self, kind, topic, depth):
        self.published[topic] = []
        return SimpleNamespace(publish=self.published[topic].append)

    def create_subscription(self, kind, topic, taker, depth, *, callback_group):
        self.takers[topic] = taker

    def get_logger(self):
        return SimpleNamespace(warning=lambda text, throttle_duration_sec: self.complaints.append(text))


@pytest.fixture
def node_module(monkeypatch):
    for name, members in NAMES.items():
        module = ModuleType(name)
        for member in members:
            setattr(module, member, {"Duration": Nanoseconds, "Time": Nanoseconds}.get(member, Message))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "foreframe_ros2.node", raising=False)
    yield importlib.import_module("foreframe_ros2.node")
    sys.modules.pop("foreframe_ros2.node", None)


@pytest.fixture
def robot(node_module, server):
    """A node of the scripted server's model that has been told where its two joints are."""
    node = Node(state=["a=arm", "b=lift"])
    with Client("http://robot", transport=httpx.MockTransport(server)) as client:
        node_module.Predictor(node, client)
        yield node


def header(time_s):
    return SimpleNamespace(stamp=SimpleNamespace(sec=int(time_s), nanosec=round(time_s % 1 * 1e9)), frame_id="head")


def image(time_s, encoding="rgb8"):
    data = np.full((4, 5, 3), round(time_s * 10), np.uint8).tobytes()
    return SimpleNamespace(
        header=header(time_s), height=4, width=5, encoding=encoding, is_bigendian=0, step=15, data=data
    )


def joints(time_s):
    return SimpleNamespace(
        header=header(time_s), name=["lift", "arm"], position=[2 * time_s, time_s], velocity=[], effort=[]
    )


def plan(seconds):
    point = SimpleNamespace(positions=[3.0], velocities=[], time_from_start=SimpleNamespace(sec=0, nanosec=seconds))
    return SimpleNamespace(header=header(1.0), joint_names=["arm"], points=[point])


def drive(node):
    for time_s in (0.8, 0.9, 1.0):
        node.takers["joint_states"](joints(time_s))
        node.takers["image"](image(time_s))


def test_a_plan_is_answered_with_frames_stamped_ahead(robot, server):
    drive(robot)
    robot.takers["plan"](plan(200_000_000))

    (asked,) = server.posted()
    camera = asked["observation"]["cameras"]["head"]
    np.testing.assert_array_equal(np.frombuffer(camera["data"], np.uint8).reshape(3, -1)[:, 0], [8, 9, 10])
    np.testing.assert_allclose(asked["observation"]["state"]["values"], [[0.8, 1.6], [0.9, 1.8], [1.0, 2.0]], rtol=1e-6)
    np.testing.assert_allclose(asked["future"]["values"], [[2.0, 2.0], [3.0, 2.0]], rtol=1e-6)
    frames = robot.published["~/predicted"]
    assert [frame.header.stamp.nanosec for frame in frames] == [100_000_000, 200_000_000]
    assert {(frame.header.frame_id, frame.encoding, frame.step) for frame in frames} == {("head", "rgb8", 15)}
    assert [list(spread.data) for spread in robot.published["~/spread"]] == [[0.25, 0.5]]


def test_a_plan_before_there_is_a_context_is_only_complained_of(robot, server):
    robot.takers["plan"](plan(200_000_000))

    assert server.posted() == []
    assert robot.complaints == ["no frame has come yet"]


def test_messages_that_cannot_be_used_and_refusals_stop_nothing(robot, server, refuse):
    drive(robot)
    robot.takers["image"](image(1.1, encoding="mono16"))
    server.script = [refuse("overloaded", 503, retryable=False)]
    robot.takers["plan"](plan(200_000_000))

    assert "encoding is 'mono16'" in robot.complaints[0]
    assert "overloaded" in robot.complaints[1]
    assert robot.published["~/predicted"] == []


def test_a_node_without_a_map_of_its_joints_does_not_start(node_module, server):
    with (
        Client("http://robot", transport=httpx.MockTransport(server)) as client,
        pytest.raises(node_module.ConversionError, match="'a' comes from nowhere"),
    ):
        node_module.Predictor(Node(), client)
