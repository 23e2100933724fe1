"""What is known of a picture or clip after it was decoded, and the error for one that cannot be."""

from __future__ import annotations

from dataclasses import dataclass


class Unreadable(ValueError):
    """A file that nothing can be decoded from. reason: the code that stands in the manifest, e.g. "file.empty"."""

    def __init__(self, reason: str, sentence: str):
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True)
class Facts:
    """kind: "image" or "video". width, height: pixels as shown: rotation applied, pixels square.

    rotation: degrees counterclockwise that were applied, mirrored: that a mirroring was. frames: really decoded;
    frames_header: what the header says, 0 when it is silent. fps: average rate by time stamps, None for one frame.
    variable: that the frames do not come at one rate. duration: seconds to the end of the last frame, duration_header: what
    the header says, None when silent. alpha: that something is transparent. bits: of a channel. interlaced. damage: what
    could not be decoded, in words, "" when all could. times: seconds at which the frames begin, from 0.
    """

    kind: str
    width: int
    height: int
    rotation: int = 0
    mirrored: bool = False
    frames: int = 1
    frames_header: int = 0
    fps: float | None = None
    variable: bool = False
    duration: float | None = None
    duration_header: float | None = None
    alpha: bool = False
    bits: int = 8
    interlaced: bool = False
    damage: str = ""
    times: tuple[float, ...] = ()
