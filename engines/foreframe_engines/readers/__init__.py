"""Recordings in the formats that robots' data comes in, one episode at a time. Knows no model.

Reading needs more than numpy: pyarrow for tables, PyAV for videos, Pillow for pictures; each is imported when used.
"""

from foreframe_engines.readers.episode_files import EpisodeFiles
from foreframe_engines.readers.lerobot import LeRobotRecordings
from foreframe_engines.readers.plain import PlainRecordings
from foreframe_engines.readers.recordings import Recordings, check_index

__all__ = ["EpisodeFiles", "LeRobotRecordings", "PlainRecordings", "Recordings", "check_index"]
