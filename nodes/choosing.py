"""Choosing among pictures or clips of one prompt, of any model."""

from __future__ import annotations

from comfy_api.latest import io

from ..host import best_of_n
from ..host.compat import schema


class BestOfN(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogBestOfN", display_name="Best of N (Sana + CogVideoX)", category="Sana/pictures",
            description="Keeps, of several pictures or clips of one prompt, those that a verifier likes best: draw four at once, "
                        "keep one.",
            search_aliases=["inference time scaling", "select best image", "clip score", "rank", "verifier", "batch"],
            inputs=[
                io.Image.Input("images", tooltip="Pictures of one prompt: those of a batch. Or clips, one after the other."),
                io.String.Input("prompt", multiline=True, tooltip="What they are to show; the prompt that was drawn."),
                io.Combo.Input("verifier", options=list(best_of_n.VERIFIERS), default=best_of_n.JUDGE,
                               tooltip="The judge knows only the shapes of the embedded models. A CLIP knows any prompt; "
                                       "a vision-language model reads long ones and sees a clip as one."),
                io.Combo.Input("clip_folder", options=best_of_n.clip_folders(), default=best_of_n.NO_FOLDER,
                               tooltip="Of the verifier CLIP: a folder in models/clip_vision, as transformers keeps one."),
                io.Int.Input("keep", default=1, min=1, max=4096, tooltip="How many to keep, best first."),
                io.Int.Input("frames", default=1, min=1, max=16384, optional=True,
                             tooltip="Frames of each clip, where clips are to be judged and kept whole. 1: pictures."),
                io.Combo.Input("vlm_folder", options=best_of_n.vlm_folders(), default=best_of_n.NO_FOLDER, optional=True,
                               tooltip="Of the verifier vision-language model: a folder in models/LLM, as transformers keeps one."),
            ],
            outputs=[io.Image.Output(display_name="best", tooltip="The kept pictures or clips, best first."),
                     io.String.Output(display_name="scores", tooltip="A line each: its number and its score."),
                     io.Int.Output(display_name="index", tooltip="Which is the best, from 0.")])

    @classmethod
    def execute(cls, images, prompt, verifier=best_of_n.JUDGE, clip_folder=best_of_n.NO_FOLDER, keep=1, frames=1,
                vlm_folder=best_of_n.NO_FOLDER):
        return io.NodeOutput(*best_of_n.best_of(images, prompt, verifier, clip_folder, keep, frames, vlm_folder))


NODES = [BestOfN]
