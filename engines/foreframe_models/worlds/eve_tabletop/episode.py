"""One recorded episode: simulate, render, label. The same seed gives the same episode."""

from collections.abc import Iterator
from contextlib import contextmanager

import mujoco
import numpy as np
from jaxtyping import UInt8

from foreframe_engines.episodes import Episode
from foreframe_models.worlds.eve_tabletop.motion import CONTROL_HZ, Behaviour
from foreframe_models.worlds.eve_tabletop.robot import Robot
from foreframe_models.worlds.eve_tabletop.scene import OBJECTS, TRAY_TOP_M, SceneProperties, build_model, draw_scene
from foreframe_models.worlds.gl import NO_GL

FPS = 15
TICKS_PER_FRAME = CONTROL_HZ // FPS
PHYSICS_STEPS_PER_TICK = 8
SUPERSAMPLING = 2
WARM_UP_TICKS = 30
OBJECT_LABELS = {name: index + 1 for index, name in enumerate(OBJECTS)}
"""Mask values: 0 is everything that the states decide, 1.. are the objects with hidden dynamics."""


class Simulation:
    """Scene, robot and behaviour of one seed, advanced frame by frame. Needs no renderer.

    A given `scene` replaces the seed's own, for what-if questions: the behaviour stays the seed's.
    """

    def __init__(self, seed: int, scene: SceneProperties | None = None) -> None:
        scene_rng, behaviour_rng = np.random.default_rng(seed).spawn(2)
        self.scene = scene or draw_scene(scene_rng)
        self.model = build_model(self.scene)
        self.model.opt.timestep = 1.0 / CONTROL_HZ / PHYSICS_STEPS_PER_TICK
        self.data = mujoco.MjData(self.model)
        self.robot = Robot(self.model, self.data)
        self.behaviour = Behaviour(self.robot, behaviour_rng)
        self._tick = 0
        self._is_object = np.isin(np.arange(self.model.ngeom), [self.model.geom(name).id for name in OBJECTS])
        while self._tick < WARM_UP_TICKS:
            self._advance_tick()

    def advance_frame(self) -> None:
        """Advance by one frame period."""
        for _ in range(TICKS_PER_FRAME):
            self._advance_tick()

    def is_object_touched(self) -> bool:
        """Tell whether the robot touches an object right now."""
        shell = (self.model.geom_contype == 1) & (self.model.geom_conaffinity == 2)
        pairs = self.data.contact.geom
        return bool((self._is_object[pairs] & shell[pairs[:, ::-1]]).any())

    def num_objects_off_tray(self) -> int:
        """Count the objects that fell below the tray."""
        return sum(bool(self.data.body(name).xpos[2] < TRAY_TOP_M) for name in OBJECTS)

    def _advance_tick(self) -> None:
        self.behaviour.tick(self._tick)
        mujoco.mj_step(self.model, self.data, PHYSICS_STEPS_PER_TICK)
        self._tick += 1


class Camera:
    """Renders the head camera and the objects' labels at one size."""

    def __init__(self, model: mujoco.MjModel, size: int, name: str) -> None:
        self._size, self._name = size, name
        self._renderer = _open_renderer(model, size * SUPERSAMPLING)
        self._labels = np.zeros(model.ngeom + 1, np.uint8)
        for object_name, label in OBJECT_LABELS.items():
            self._labels[model.geom(object_name).id] = label

    def close(self) -> None:
        """Free the GL context."""
        self._renderer.close()

    def frame(self, data: mujoco.MjData) -> UInt8[np.ndarray, "h w 3"]:
        """Render RGB, box-averaged from a larger picture."""
        self._renderer.update_scene(data, camera=self._name)
        large = self._renderer.render().reshape(self._size, SUPERSAMPLING, self._size, SUPERSAMPLING, 3)
        return np.round(large.mean(axis=(1, 3))).astype(np.uint8)

    def mask(self, data: mujoco.MjData) -> UInt8[np.ndarray, "h w"]:
        """Render labels: the object seen at each pixel, 0 for none."""
        self._renderer.enable_segmentation_rendering()
        self._renderer.update_scene(data, camera=self._name)
        ids = self._renderer.render()[::SUPERSAMPLING, ::SUPERSAMPLING]
        self._renderer.disable_segmentation_rendering()
        is_geom = ids[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM)
        return np.where(is_geom, self._labels[ids[..., 0]], 0).astype(np.uint8)


@contextmanager
def open_camera(model: mujoco.MjModel, size: int, name: str = "head") -> Iterator[Camera]:
    """Open a camera and free its GL context afterwards. Raises RuntimeError when no GL is installed."""
    camera = Camera(model, size, name)
    try:
        yield camera
    finally:
        camera.close()


def generate_episode(seed: int, num_frames: int = 64, size: int = 64, camera_name: str = "head") -> Episode:
    """Simulate and render one episode of `num_frames` at 15 frames a second."""
    simulation = Simulation(seed)
    frames, states, masks, num_contact_frames = [], [], [], 0
    with open_camera(simulation.model, size, camera_name) as camera:
        for _ in range(num_frames):
            simulation.advance_frame()
            frames.append(camera.frame(simulation.data))
            masks.append(camera.mask(simulation.data))
            states.append(simulation.robot.state())
            num_contact_frames += simulation.is_object_touched()
    metadata = {
        "fps": FPS,
        "num_kicks": simulation.behaviour.num_kicks,
        "num_contact_frames": num_contact_frames,
        "num_objects_off_tray": simulation.num_objects_off_tray(),
        "scene": simulation.scene.as_dict(),
    }
    return Episode(seed, np.stack(frames), np.stack(states), np.stack(masks), metadata)


def _open_renderer(model: mujoco.MjModel, size: int) -> mujoco.Renderer:
    try:
        return mujoco.Renderer(model, size, size)
    except Exception as error:  # the GL libraries raise whatever they like
        raise RuntimeError(NO_GL) from error
