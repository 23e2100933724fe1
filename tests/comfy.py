"""The ComfyUI that the tests talk to over HTTP: a client that knows the server's process, folders and log."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from sanacog.headless.client import Client, Failed, Refused, reasons

# What ComfyUI 0.3.75 and newer print when a pack does not load; the process goes on without it.
BROKEN_PACK = ("IMPORT FAILED", "Error while calling comfy_entrypoint", "Cannot import")


class Comfy(Client):
    """base: the server's base folder, with models/, input/ and output/. object_info: all its nodes."""

    def __init__(self, server):
        super().__init__(server.url, patience_s=0)
        self.server = server
        self.base = Path(server.base)
        self.object_info = self.get("/object_info")

    def log(self):
        return self.server.read_log()

    def completed(self, prompt):
        """The prompt with defaults for required inputs that are not in it: stock nodes grow some with time."""
        full = {}
        for key, node in prompt.items():
            inputs = dict(node["inputs"])
            known = self.object_info.get(node["class_type"], {"input": {}})["input"].get("required", {})
            for name, spec in known.items():
                if name not in inputs and (value := default(spec)) is not None:
                    inputs[name] = value
            full[key] = {**node, "inputs": inputs}
        return full

    def run_prompt(self, prompt, timeout_s=600, **extra):
        """Run a prompt to its end; returns the `Result`, with `clips`: {file name: frames_of the file}, and `images`:
        the frames of all files in one list.

        Raises Refused or Failed.
        """
        result = self.run(self.completed(prompt), timeout_s, **extra)
        result.clips = {entry["filename"]: frames_of(entry["filename"], self.file(entry)) for entry in result.files()}
        result.images = [frame for clip in result.clips.values() for frame in clip]
        return result

    def expect_error(self, prompt, timeout_s=600):
        """Run a prompt that must not work, and one after it that must; returns all that the server said about it."""
        try:
            result = self.run(self.completed(prompt), timeout_s)
        except Refused as error:
            said = "\n".join(reasons(error.answer))
        except Failed as error:
            said = f"{error.result.error.get('exception_type')}: {error.result.error.get('exception_message')}"
        else:
            raise AssertionError(f"this prompt ran to its end and gave {result.files() or 'no picture'}")
        self.assert_answers()
        return said

    def assert_answers(self):
        """The server still runs prompts."""
        picture = {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 255}}
        preview = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
        image, = self.run_prompt({"1": picture, "2": preview}).images
        assert image.shape == (32, 32, 3)


def frames_of(name, data):
    """Frames (T, H, W, 3), uint8, of an mp4, an animated picture or a picture."""
    if name.endswith(".mp4"):
        import av  # comes with ComfyUI

        with av.open(io.BytesIO(data)) as file:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    return np.stack([np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data)))])


def default(spec):
    """The value that the canvas gives to a fresh widget; None for an input that has to be linked."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    choices = kind if isinstance(kind, list) else options.get("options", [])
    choices = [choice["key"] if isinstance(choice, dict) else choice for choice in choices]
    return options.get("default", choices[0] if choices else None)


def specs(declared, values, prefix=""):
    """{name: spec} of all inputs of a node with these values. Newer hosts have choices that bring inputs of their own:
    "format.codec" is the input `codec` that the value of `format` has.

    declared: what /object_info says under "input". values: {name: value}.
    """
    found = {prefix + name: spec for kind in ("required", "optional") for name, spec in declared.get(kind, {}).items()}
    for name, spec in list(found.items()):
        for option in spec[1].get("options", []) if len(spec) > 1 else []:
            if isinstance(option, dict) and option["key"] == values.get(name):
                found |= specs(option["inputs"], values, f"{name}.")
    return found
