"""The node: camera and joints in, predicted frames of every plan out. The only module that needs ROS.

Each `trajectory_msgs/JointTrajectory` asks what the camera will see when the robot follows it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.duration import Duration
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float32MultiArray
from trajectory_msgs.msg import JointTrajectory

from foreframe_client import Client, ForeframeError, Model, Prediction, resize_with_pad
from foreframe_ros2.errors import ConversionError
from foreframe_ros2.images import frame_of_compressed, frame_of_image, image_of_frame
from foreframe_ros2.joints import StateAssembler, parse_state_map
from foreframe_ros2.messages import Header, seconds_of
from foreframe_ros2.plans import rows_of_plan
from foreframe_ros2.window import Context, ContextWindow, StampedFrame

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

_KEY_VARIABLE = "FOREFRAME_API_KEY"
_NEWEST_ONLY = 1
_LOG_PERIOD_S = 5.0
_NANOSECONDS = 10**9


class Predictor:
    """Ties a ROS node to a server. Messages are taken in one thread while another waits for a prediction."""

    def __init__(self, node: Node, client: Client) -> None:
        self._node, self._client = node, client
        self._lock = threading.Lock()
        self._model = self._find_model()
        schema = next(each for each in client.state_schemas() if each.name == self._model.state_schema)
        entries = [text for text in node.declare_parameter("state", [""]).value if text]
        state_map = parse_state_map(entries, schema.names, schema.units)
        max_gap_s = float(node.declare_parameter("max_gap_s", 0.1).value)
        self._assembler = StateAssembler(state_map, max_gap_s)
        self._window = ContextWindow(self._model.fps, self._model.context_frames, max_gap_s=max_gap_s)
        self._ensemble = int(node.declare_parameter("ensemble", 4).value)
        self._deadline_ms = int(node.declare_parameter("deadline_ms", 1000).value)
        self._frame_id = ""
        self._frames_out = node.create_publisher(Image, "~/predicted", self._model.horizon)
        self._spread_out = node.create_publisher(Float32MultiArray, "~/spread", _NEWEST_ONLY)
        self._subscribe()

    def _find_model(self) -> Model:
        name = str(self._node.declare_parameter("model", "").value)
        return self._client.model(name) if name else self._client.models()[0]

    def _subscribe(self) -> None:
        node, sensors, plans = self._node, MutuallyExclusiveCallbackGroup(), MutuallyExclusiveCallbackGroup()
        is_compressed = bool(node.declare_parameter("compressed", value=False).value)
        kind, take = (CompressedImage, self._take_compressed) if is_compressed else (Image, self._take_image)
        node.create_subscription(kind, "image", take, qos_profile_sensor_data, callback_group=sensors)
        node.create_subscription(
            JointState, "joint_states", self._take_joints, qos_profile_sensor_data, callback_group=sensors
        )
        node.create_subscription(JointTrajectory, "plan", self._take_plan, _NEWEST_ONLY, callback_group=plans)

    def _take_image(self, message: Image) -> None:
        self._take_frame(message.header, partial(frame_of_image, message))

    def _take_compressed(self, message: CompressedImage) -> None:
        self._take_frame(message.header, partial(frame_of_compressed, message))

    def _take_frame(self, header: Header, read: Callable[[], UInt8[np.ndarray, "h w 3"]]) -> None:
        camera = self._model.cameras[0]
        try:
            frame = read()
        except ConversionError as error:
            self._complain(error)
            return
        (fitted,) = resize_with_pad(frame[None], camera.height, camera.width)
        with self._lock:
            self._frame_id = header.frame_id
            self._window.push_frame(StampedFrame(seconds_of(header.stamp), fitted))

    def _take_joints(self, message: JointState) -> None:
        try:
            row = self._assembler.push(message)
        except ConversionError as error:
            self._complain(error)
            return
        if row is not None:
            with self._lock:
                self._window.push_row(row)

    def _take_plan(self, plan: JointTrajectory) -> None:
        try:
            with self._lock:
                context = self._window.context()
            fps, horizon = self._model.fps, self._model.horizon
            future = rows_of_plan(plan, self._assembler.state_map, context.states[-1], fps=fps, horizon=horizon)
            prediction = self._client.predict(
                context.frames, context.states, future,
                model=self._model.id, ensemble=self._ensemble, deadline_ms=self._deadline_ms, variance="summary",
            )  # fmt: skip
        except (ConversionError, ForeframeError) as error:
            self._complain(error)
            return
        self._publish(context, prediction)

    def _publish(self, context: Context, prediction: Prediction) -> None:
        start = Time(nanoseconds=round(context.time_s * _NANOSECONDS))
        for frame, time_s in zip(prediction.frames, prediction.times_s, strict=True):
            stamp = start + Duration(nanoseconds=round(float(time_s) * _NANOSECONDS))
            self._frames_out.publish(self._image(frame, stamp))
        if prediction.spread_per_frame is not None:
            self._spread_out.publish(Float32MultiArray(data=[float(each) for each in prediction.spread_per_frame]))
        for notice in prediction.warnings:
            self._node.get_logger().warning(notice.message, throttle_duration_sec=_LOG_PERIOD_S)

    def _image(self, frame: UInt8[np.ndarray, "h w 3"], stamp: Time) -> Image:
        fields = image_of_frame(frame)
        message = Image(
            height=fields.height, width=fields.width, encoding=fields.encoding, is_bigendian=fields.is_bigendian,
            step=fields.step, data=fields.data,
        )  # fmt: skip
        message.header.stamp, message.header.frame_id = stamp.to_msg(), self._frame_id
        return message

    def _complain(self, error: Exception) -> None:
        self._node.get_logger().warning(str(error), throttle_duration_sec=_LOG_PERIOD_S)


def main() -> None:
    """Run the node until it is interrupted."""
    rclpy.init()
    node = Node("foreframe")
    address = str(node.declare_parameter("server", "http://127.0.0.1:8000").value)
    executor = MultiThreadedExecutor(num_threads=2)
    executor.add_node(node)
    try:
        with Client(address, api_key=os.environ.get(_KEY_VARIABLE)) as client:
            Predictor(node, client)
            executor.spin()
    except KeyboardInterrupt:
        pass
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
