"""The recorded clips that come with a model, as starts of sessions. Knows files, no session and no wire."""

from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from foreframe_engines import BundleError, Contract, DatasetError
from foreframe_engines.bundle import read_bundle_file
from foreframe_engines.episodes import Clip, read_clips
from foreframe_server.errors import CapabilityMissing, InvalidRequest, Reason

FILE_NAME = "clips.npz"


@dataclass(frozen=True, slots=True)
class ShippedClips:
    """The clips of a bundle's folder; none where there is no folder.

    One caller reads at a time: Python 3.11 now and then fails to parse arrays' headers in several threads at once.
    """

    folder: Path | None = None
    _turn: Lock = field(default_factory=Lock, repr=False, compare=False)

    def every(self, contract: Contract) -> list[Clip]:
        """Read every clip that the model can start from. May take tens of milliseconds."""
        try:
            with self._turn:
                content = None if self.folder is None else read_bundle_file(self.folder, FILE_NAME)
                clips = [] if content is None else read_clips(content, FILE_NAME)
        except (BundleError, DatasetError):
            return []
        return clips if all(_fits(clip, contract) for clip in clips) else []

    def read(self, index: int, contract: Contract) -> Clip:
        """Read one clip. May take tens of milliseconds.

        Raises CapabilityMissing when the model comes without clips that it can start from, InvalidRequest for a number
        that there is none of.
        """
        clips = self.every(contract)
        if not clips:
            raise CapabilityMissing("The model comes with no clips.", reasons=[Reason("/clip", "there are none")])
        if index >= len(clips):
            reason = Reason("/clip", "is not the number of a clip", f"0..{len(clips) - 1}")
            raise InvalidRequest("The model comes with no such clip.", reasons=[reason])
        return clips[index]


def _fits(clip: Clip, contract: Contract) -> bool:
    camera = contract.camera
    is_size = clip.frames.shape[1:] == (camera.height, camera.width, 3)
    return is_size and len(clip.frames) >= contract.context_frames and clip.states.shape[1] == contract.state.dim
