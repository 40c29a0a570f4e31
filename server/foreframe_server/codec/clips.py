"""Clips that come with a model to bytes. Knows no route."""

from foreframe_engines import Contract
from foreframe_engines.episodes import Clip
from foreframe_server.clip_schemas import ClipList, ClipReply, ClipSummary
from foreframe_server.codec.documents import write_document
from foreframe_server.codec.media import Media
from foreframe_server.codec.pictures import encode_jpeg, encode_png
from foreframe_server.schemas import Picture, PictureEncoding
from foreframe_server.session_clips import ShippedClips


def encode_clips(clips: ShippedClips, contract: Contract) -> bytes:
    """Write the list of a model's clips, with small pictures. Empty where it comes with none."""
    found = [_summary(index, clip, contract) for index, clip in enumerate(clips.every(contract))]
    return write_document(ClipList(clips=found).model_dump(by_alias=True), Media.JSON)


def encode_clip(clips: ShippedClips, index: int, contract: Contract) -> bytes:
    """Write one clip, without loss. Raises as `ShippedClips.read`."""
    clip = clips.read(index, contract)
    height, width = clip.frames.shape[1:3]
    reply = ClipReply(
        index=index,
        seed=clip.seed,
        start=clip.start,
        context_frames=contract.context_frames,
        frames=[
            Picture(encoding=PictureEncoding.PNG, width=width, height=height, data=encode_png(frame))
            for frame in clip.frames
        ],
        states=clip.states.tolist(),
    )
    return write_document(reply.model_dump(by_alias=True), Media.JSON)


def _summary(index: int, clip: Clip, contract: Contract) -> ClipSummary:
    frame = clip.frames[contract.context_frames - 1]
    picture = Picture(
        encoding=PictureEncoding.JPEG, width=frame.shape[1], height=frame.shape[0], data=encode_jpeg(frame)
    )
    return ClipSummary(index=index, seed=clip.seed, start=clip.start, picture=picture)
