"""The tabs: for each what it is called, what a person gives, and the shipped workflows that do it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """name: of the page's API. source: what is given beside the prompt, one of "", picture, mask, sketch, video.

    embedded, released: workflows for the two kinds of models, "" for none; guided: for released ones with dynamic guidance. extra: kinds of
    files needed beside the family's. examples: prompts in the embedded models' world, and for released ones.
    """

    name: str
    title: str
    family: str
    embedded: str
    released: str
    examples: tuple
    source: str = ""
    guided: str = ""
    sprint: bool = False
    conditioning: str = "none"
    extra: tuple = ()
    strength: float = 1.0  # of what is given: noise over it (denoise), or a ControlNet's

    def workflow(self, model):
        if model.embedded:
            return self.embedded
        return self.guided if self.guided and model.preset.dynamic_guidance else self.released


SHAPES = ("a large red circle on a blue background", "a large yellow square on a purple background",
          "a large green triangle on a white background", "a large orange ring on a black background")
SEVERAL = ("a red circle left of a blue square on a white background", "three green triangles on an orange background")
SCENES = ("a lighthouse on a rocky coast at dusk, warm light in its windows, film photograph",
          "a glass of water on a wooden table, morning light, macro photograph",
          "a small red house in deep snow under a starry sky, woodcut")
MOVES = ("a red circle moving right on a blue background", "a yellow square moving up on a black background",
         "a green triangle moving left on a white background")
SHOTS = ("A lighthouse stands on a rocky coast at dusk. Waves roll in and break on the rocks. The camera moves slowly to the "
         "right. Film photograph, natural colours.",
         "A cardboard box slides slowly over a wooden table towards the window. Warm evening light, the camera stands still.")

TASKS = (
    Task("sana_text", "Text", "sana", "sana_quickstart", "sana_text_to_image", (SHAPES[:2] + SEVERAL, SCENES)),
    Task("sana_sprint", "Sprint", "sana", "sana_sprint", "sana_sprint", (SHAPES, SCENES), sprint=True),
    Task("sana_image", "Picture", "sana", "sana_image_to_image", "sana_image_to_image", (SHAPES[2:], SCENES[1:]), "picture",
         strength=0.8),
    Task("sana_inpaint", "Inpaint", "sana", "sana_inpaint", "sana_inpaint", (SHAPES[1:], SCENES[1:]), "mask"),
    Task("sana_controlnet", "Sketch", "sana", "sana_controlnet", "sana_controlnet", (SHAPES[:2], SCENES[:2]), "sketch",
         extra=("controlnet",)),
    Task("sana_video_text", "Text", "sana_video", "sana_video_text_to_video", "sana_video_2b_text_to_video", (MOVES, SHOTS)),
    Task("sana_video_image", "Picture", "sana_video", "sana_video_image_to_video", "",
         (("a yellow square moving right on a purple background",), SHOTS[1:]), "picture"),
    Task("cogvideox_text", "Text", "cogvideox", "cogvideox_text_to_video", "cogvideox_text_to_video", (MOVES, SHOTS),
         guided="cogvideox_5b_text_to_video"),
    Task("cogvideox_image", "Picture", "cogvideox", "cogvideox_image_to_video", "cogvideox_1_5_image_to_video",
         (("a yellow square moving right on a purple background",), SHOTS[1:]), "picture", conditioning="image"),
    Task("cogvideox_video", "Video", "cogvideox", "cogvideox_video_to_video", "cogvideox_video_to_video",
         (MOVES[:2], SHOTS[:1]), "video", strength=0.8),
)
