"""How near frames are to the truth, and how sharp they are. Pure numpy; knows no model and no clip."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8

SSIM_WINDOW = 11
"""Height and width of the SSIM's window; frames must be at least as large."""

_SIGMA = 1.5
_WHITE = 255.0
_C1, _C2 = (0.01 * _WHITE) ** 2, (0.03 * _WHITE) ** 2
_MIN_ERROR = 1e-10


@dataclass(frozen=True, slots=True, eq=False)
class Quality:
    """How good each frame of an answer is: PSNR in dB (at most 100), SSIM, and gradient energy."""

    psnr_db: Float64[np.ndarray, " f"]
    ssim: Float64[np.ndarray, " f"]
    gradient_energy: Float64[np.ndarray, " f"]

    @classmethod
    def of(cls, frames: UInt8[np.ndarray, "f h w 3"], truth: UInt8[np.ndarray, "f h w 3"]) -> "Quality":
        """Measure frames against the truth. Raises ValueError for frames smaller than the SSIM's window."""
        return cls(psnr_db(frames, truth), ssim(frames, truth), gradient_energy(frames))


def psnr_db(frames: UInt8[np.ndarray, "f h w 3"], truth: UInt8[np.ndarray, "f h w 3"]) -> Float64[np.ndarray, " f"]:
    """Return each frame's peak signal-to-noise ratio in dB, at most 100."""
    errors = np.square((frames.astype(np.float64) - truth) / _WHITE).mean(axis=(1, 2, 3))
    return -10 * np.log10(np.maximum(errors, _MIN_ERROR))


def ssim(frames: UInt8[np.ndarray, "f h w 3"], truth: UInt8[np.ndarray, "f h w 3"]) -> Float64[np.ndarray, " f"]:
    """Return the structural similarity (-1..1, 1 for equal frames) of each frame, the mean over RGB.

    Gaussian window 11 x 11 of sigma 1.5, only where it fits, K1 = 0.01, K2 = 0.03: Wang, Bovik, Sheikh and Simoncelli,
    "Image quality assessment: from error visibility to structural similarity", 2004, equation 13.
    Raises ValueError for frames smaller than the window.
    """
    if min(truth.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs frames of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels")
    x, y = frames.astype(np.float64), truth.astype(np.float64)
    mean_x, mean_y = _smooth(x), _smooth(y)
    variance_x = _smooth(x * x) - mean_x**2
    variance_y = _smooth(y * y) - mean_y**2
    covariance = _smooth(x * y) - mean_x * mean_y
    similar = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return (similar / ((mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2))).mean(axis=(1, 2, 3))


def gradient_energy(frames: UInt8[np.ndarray, "f h w 3"]) -> Float64[np.ndarray, " f"]:
    """Return each frame's mean squared difference of neighbouring pixels, down and across, where white is 1.

    A prediction's sharpness is this over the truth's: below 1 it is blurred.
    """
    levels = frames.astype(np.float64) / _WHITE
    down, across = np.diff(levels, axis=1), np.diff(levels, axis=2)
    return np.square(down).mean(axis=(1, 2, 3)) + np.square(across).mean(axis=(1, 2, 3))


def _smooth(values: Float64[np.ndarray, "f h w c"]) -> Float64[np.ndarray, "f y x c"]:
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-np.square(offsets) / (2 * _SIGMA**2))
    weights /= weights.sum()
    height, width = (size - SSIM_WINDOW + 1 for size in values.shape[1:3])
    rows = sum(weight * values[:, start : start + height] for start, weight in enumerate(weights))
    return sum(weight * rows[:, :, start : start + width] for start, weight in enumerate(weights))
