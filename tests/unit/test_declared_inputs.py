"""What the tests' own client reads from /object_info, in the shapes that older and newer hosts give it."""

from ..comfy import default, specs

CODEC = ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "auto", "inputs": {}}, {"key": "h264", "inputs": {
    "required": {"crf": ["FLOAT", {"default": 23.0}]}}}]}]
SAVE = {"required": {
    "video": ["VIDEO", {}],
    "format": ["COMFY_DYNAMICCOMBO_V3", {"options": [
        {"key": "mp4", "inputs": {"required": {"codec": CODEC}}}, {"key": "webm", "inputs": {"optional": {"codec": CODEC}}}]}]},
    "optional": {"prefix": ["STRING", {"default": "video"}]}}


def test_choices_bring_their_inputs():
    assert specs(SAVE, {}).keys() == {"video", "format", "prefix"}
    assert specs(SAVE, {"format": "webm"}).keys() == {"video", "format", "prefix", "format.codec"}
    values = {"format": "mp4", "format.codec": "h264"}
    assert specs(SAVE, values).keys() == {"video", "format", "prefix", "format.codec", "format.codec.crf"}
    assert specs(SAVE, values)["format.codec.crf"] == ["FLOAT", {"default": 23.0}]


def test_defaults():
    known = specs(SAVE, {"format": "mp4"})
    assert {name: default(spec) for name, spec in known.items()} == {
        "video": None, "format": "mp4", "prefix": "video", "format.codec": "auto"}
    assert default([["euler", "heun"]]) == "euler"                             # a list of choices, as it always was
    assert default(["COMBO", {"options": ["euler", "heun"], "default": "heun"}]) == "heun"
