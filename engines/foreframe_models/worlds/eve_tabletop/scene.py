"""One episode's scene: object sizes, hidden masses and frictions, colours, light. Knows no motion."""

import colorsys
from dataclasses import asdict, dataclass
from pathlib import Path

import mujoco
import numpy as np

SCENE_XML = Path(__file__).with_name("scene.xml")
OBJECTS = ("ball", "box", "can")
TRAY_TOP_M = 0.74
TRAY_X_M = (0.33, 0.71)
TRAY_Y_M = (-0.31, 0.31)
MIN_OBJECT_GAP_M = 0.15
OBJECT_COLOURS = ((0.85, 0.12, 0.12), (0.12, 0.30, 0.85), (0.15, 0.65, 0.20), (0.95, 0.80, 0.10), (0.65, 0.20, 0.75))
TRAY_COLOURS = ((0.62, 0.50, 0.38), (0.70, 0.70, 0.68), (0.40, 0.45, 0.50), (0.55, 0.42, 0.30))


@dataclass(frozen=True, slots=True)
class ObjectProperties:
    """One object's drawn properties. Mass and friction are hidden: neither is seen or in the states."""

    name: str
    position_m: tuple[float, float]
    half_size_m: float
    mass_kg: float
    friction: float
    rgb: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class SceneProperties:
    """Everything that is drawn per episode, so that a picture can be explained by its metadata."""

    objects: tuple[ObjectProperties, ...]
    tray_rgb: tuple[float, float, float]
    light_gain: float
    light_direction: tuple[float, float, float]

    def as_dict(self) -> dict[str, object]:
        """Return the properties as plain JSON values."""
        return asdict(self)


def draw_scene(rng: np.random.Generator) -> SceneProperties:
    """Draw one scene. Equal generators give equal scenes."""
    colours = rng.permutation(len(OBJECT_COLOURS))
    positions = _spread_positions(rng)
    objects = tuple(
        ObjectProperties(
            name=name,
            position_m=position,
            half_size_m=float(rng.uniform(0.055, 0.065) if name == "ball" else rng.uniform(0.038, 0.050)),
            mass_kg=float(rng.uniform(0.04, 0.5)),
            friction=float(rng.uniform(0.2, 1.0)),
            rgb=_jittered(OBJECT_COLOURS[colour], rng),
        )
        for name, position, colour in zip(OBJECTS, positions, colours, strict=False)
    )
    direction = (float(rng.uniform(-0.3, 0.1)), float(rng.uniform(-0.3, 0.3)), -1.0)
    tray = _jittered(TRAY_COLOURS[rng.integers(len(TRAY_COLOURS))], rng)
    return SceneProperties(objects, tray, float(rng.uniform(0.85, 1.1)), direction)


def build_model(scene: SceneProperties) -> mujoco.MjModel:
    """Compile the scene's XML with the drawn properties filled in."""
    spec = mujoco.MjSpec.from_file(str(SCENE_XML))
    for item in scene.objects:
        geom = spec.geom(item.name)
        height = item.half_size_m * (1.1 if item.name == "can" else 1.0)
        geom.size = [item.half_size_m, height if item.name == "can" else item.half_size_m, item.half_size_m]
        geom.mass = item.mass_kg
        geom.friction = [item.friction, 0.01, 0.004 if item.name == "ball" else 0.002]
        geom.rgba = [*item.rgb, 1.0]
        spec.body(item.name).pos = [*item.position_m, TRAY_TOP_M + height + 0.001]
    spec.geom("tray").rgba = [*scene.tray_rgb, 1.0]
    light = spec.light("sun")
    light.dir = list(scene.light_direction)
    light.diffuse = [float(scene.light_gain * value) for value in light.diffuse]
    return spec.compile()


def _spread_positions(rng: np.random.Generator) -> list[tuple[float, float]]:
    positions: list[tuple[float, float]] = []
    while len(positions) < len(OBJECTS):
        x, y = float(rng.uniform(0.38, 0.66)), float(rng.uniform(-0.26, 0.26))
        if all(np.hypot(x - px, y - py) > MIN_OBJECT_GAP_M for px, py in positions):
            positions.append((x, y))
    return positions


def _jittered(rgb: tuple[float, float, float], rng: np.random.Generator) -> tuple[float, float, float]:
    hue, lightness, saturation = colorsys.rgb_to_hls(*rgb)
    return colorsys.hls_to_rgb(hue, float(np.clip(lightness * rng.uniform(0.9, 1.1), 0.0, 1.0)), saturation)
