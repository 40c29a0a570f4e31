"""The recorded clips that come with a model, as starts of sessions. Knows files, no session and no wire."""

from dataclasses import dataclass
from pathlib import Path

from foreframe_engines import Contract, DatasetError
from foreframe_engines.episodes import Clip, load_clips
from foreframe_server.errors import CapabilityMissing, InvalidRequest, Reason

FILE_NAME = "clips.npz"


@dataclass(frozen=True, slots=True)
class ShippedClips:
    """The clips of a bundle's folder; none where there is no folder."""

    folder: Path | None = None

    def read(self, index: int, contract: Contract) -> Clip:
        """Read one clip. May take tens of milliseconds.

        Raises CapabilityMissing when the model comes without clips that it can start from, InvalidRequest for a number
        that there is none of.
        """
        if self.folder is None or not (self.folder / FILE_NAME).is_file():
            raise _no_clips()
        try:
            clips = load_clips(self.folder / FILE_NAME)
        except DatasetError:
            raise _no_clips() from None
        if index >= len(clips):
            reason = Reason("/clip", "is not the number of a clip", f"0..{len(clips) - 1}")
            raise InvalidRequest("The model comes with no such clip.", reasons=[reason])
        _check_fit(clips[index], contract)
        return clips[index]


def _check_fit(clip: Clip, contract: Contract) -> None:
    camera = contract.camera
    is_size = clip.frames.shape[1:] == (camera.height, camera.width, 3)
    if not is_size or len(clip.frames) < contract.context_frames or clip.states.shape[1] != contract.state.dim:
        raise _no_clips()


def _no_clips() -> CapabilityMissing:
    return CapabilityMissing("The model comes with no clips.", reasons=[Reason("/clip", "there are none")])
