"""What can be wrong with a row of a data set: the codes in the manifest, how grave each is, and what to do about it."""

from __future__ import annotations

from typing import NamedTuple

ERROR, WARN = "error", "warn"


class Finding(NamedTuple):
    """One thing found: `figure` is what was measured, for sorting and tests; `sentence` says it to people."""

    code: str
    figure: float | int | None
    sentence: str

    @property
    def severity(self) -> str:
        return CODES[self.code].severity


class Code(NamedTuple):
    severity: str  # ERROR: the row is not trained on. WARN: it is
    what: str
    do: str


CODES = {
    # the file
    "file.missing": Code(ERROR, "the file is not there", "put it back, or take its row out"),
    "file.empty": Code(ERROR, "the file has no bytes", "copy or download it again"),
    "file.unreadable": Code(ERROR, "the file cannot be decoded", "open it in a viewer; copy it again, or convert it to PNG or MP4"),
    "file.truncated": Code(ERROR, "the file ends before its last picture", "copy or download it again"),
    "file.no_video": Code(ERROR, "there is sound in the file and no video", "take it out"),
    "file.header_frames": Code(WARN, "the header gives another number of frames than can be decoded",
                               "nothing: the decoded number is used; remux the file if players stumble"),
    "file.variable_rate": Code(WARN, "the frame rate varies", "nothing: frames are taken by their time stamps"),
    "file.rotated": Code(WARN, "the file says that it is to be shown turned or mirrored", "nothing: it is turned when it is read"),
    "file.interlaced": Code(WARN, "the video is interlaced: moving edges are combs",
                            "deinterlace it, for example with ffmpeg's bwdif"),
    "file.alpha": Code(WARN, "the picture is transparent in places",
                       "nothing, if white is right behind it; else lay it over a background"),
    "file.high_bit_depth": Code(WARN, "the file has more than 8 bits a channel",
                                "nothing for plain 10 bit and 16 bit files; map HDR to SDR before training"),
    "file.odd_size": Code(WARN, "the video has an odd width or height", "nothing: it is cropped; many codecs refuse odd sizes"),
    # the picture, or frames of a clip
    "picture.no_bucket": Code(ERROR, "there is no bucket for its kind",
                              "see the sentence beside it; --frames-to-pictures makes pictures of clips"),
    "picture.enlarged": Code(WARN, "it is smaller than its bucket and is enlarged",
                             "take a larger original, or train at a lower resolution"),
    "picture.cropped": Code(WARN, "much of it is cropped to fit its bucket", "crop it by hand, or add a bucket of its shape"),
    "picture.black_bars": Code(WARN, "there are black bars at two sides", "crop them off (--fix does)"),
    "picture.black": Code(WARN, "it is all but black", "take it out, unless it is meant"),
    "picture.white": Code(WARN, "it is all but white", "take it out, unless it is meant"),
    "picture.flat": Code(WARN, "it has one colour only", "take it out, unless it is meant"),
    "picture.blurred": Code(WARN, "nothing in it is sharp", "take it out, unless it is meant"),
    # the clip
    "clip.too_short": Code(ERROR, "it has fewer frames than the smallest bucket", "take a longer clip, or train with fewer frames"),
    "clip.cuts": Code(WARN, "there are hard cuts in it", "split it at the cuts"),
    "clip.frozen": Code(WARN, "nothing moves in it", "take it out, or use a frame of it as a picture"),
    "clip.flicker": Code(WARN, "its brightness jumps from frame to frame", "take it out, or deflicker it"),
    "clip.flash": Code(WARN, "a single frame differs from those around it", "cut it out, unless it is meant"),
    # the caption
    "caption.missing": Code(ERROR, "there is no caption", "write one, or caption automatically (--caption)"),
    "caption.empty": Code(ERROR, "the caption has no text", "write one, or caption automatically (--caption)"),
    "caption.refusal": Code(ERROR, "a model declined to describe it, and said so", "write one, or caption it with another model"),
    "caption.short": Code(WARN, "the caption has fewer than three words", "say what there is to see"),
    "caption.long": Code(WARN, "the caption is longer than the text encoder reads", "shorten it: the end is cut off"),
    "caption.repeated": Code(WARN, "the caption says the same again and again", "write another, or caption it anew"),
    "caption.opening": Code(WARN, "the caption opens with a phrase about the file, not with what it shows",
                            "take it out (--fix does)"),
    "caption.markup": Code(WARN, "there is markup in the caption", "take it out (--fix does)"),
    "caption.url": Code(WARN, "there is an address in the caption", "take it out (--fix does)"),
    "caption.spaces": Code(WARN, "there are line breaks, control characters or spaces in rows in the caption",
                           "take them out (--fix does)"),
    "caption.file_name": Code(WARN, "there is a file's name in the caption", "say what there is to see instead"),
    "caption.script": Code(WARN, "the caption is written in other letters than the data set is", "translate it"),
    "caption.trigger": Code(WARN, "the trigger word is not in the caption", "put it in (--fix does, in front)"),
    # the set
    "set.duplicate": Code(WARN, "it is the same file as another",
                          "take one out (--fix leaves it out if the captions are the same too)"),
    "set.near_duplicate": Code(WARN, "it looks the same as another", "take one out, unless both are meant"),
    "set.same_caption": Code(WARN, "many rows have this same caption", "say what is different in each"),
}


def status_of(findings) -> str:
    """A row's status: that of its gravest finding."""
    severities = {finding.severity for finding in findings}
    return ERROR if ERROR in severities else WARN if WARN in severities else "ok"
