"""Encoded contexts by their frames' content, for the thread that owns a device. It knows no engine.

Small ones are told apart by a sum and then byte for byte, which takes a tenth of a digest's time; of large ones only
the digest is kept, as they would fill the memory.
"""

import numpy as np
from jaxtyping import UInt8

from foreframe_engines.types import Latents
from foreframe_server.lru import LruBytes
from foreframe_server.quarantine import digest_arrays

_SMALL_BYTES = 2**19
_ENTRY_BYTES = 1024
"""What keeping a context costs beside its numbers, about: small ones would grow without end otherwise."""

Context = UInt8[np.ndarray, "t h w 3"]


class KnownContexts:
    """The latents of contexts (RGB 0..255), `max_bytes` of them and of the small ones' frames."""

    def __init__(self, max_bytes: int) -> None:
        self._kept: LruBytes[tuple[Latents, Context | None]] = LruBytes(max_bytes)

    def get(self, context: Context, digest: bytes | None = None) -> Latents | None:
        """Return a context's latents and mark them as used, or None. digest: of a large one, where it is known."""
        kept = self._kept.get(_name(context, digest))
        if kept is None:
            return None
        latents, frames = kept
        return latents if frames is None or np.array_equal(frames, context) else None

    def put(self, context: Context, latents: Latents, digest: bytes | None = None) -> None:
        """Keep a context's latents. digest: as in `get`."""
        frames = None if is_large(context) else context.copy()
        num_bytes = latents.nbytes + (0 if frames is None else frames.nbytes) + _ENTRY_BYTES
        self._kept.put(_name(context, digest), (latents, frames), num_bytes)


def is_large(context: Context) -> bool:
    """Whether a context is told from others by its digest alone, which takes longer than handing it to a thread."""
    return context.nbytes > _SMALL_BYTES


def _name(context: Context, digest: bytes | None) -> bytes:
    if is_large(context):
        return digest or context_digest(context)
    content = np.ascontiguousarray(context).reshape(-1)
    words = content[: content.size // 8 * 8].view(np.uint64)
    return f"{context.shape} {np.add.reduce(words)} {content[len(words) * 8 :].tobytes().hex()}".encode()


def context_digest(context: Context) -> bytes:
    """Tell a context from others, as far as a digest can."""
    return digest_arrays("context", (context,))
