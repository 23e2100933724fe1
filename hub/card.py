"""The model card of what is published: its header, which the Hub reads, and a page for people."""

from __future__ import annotations

from dataclasses import dataclass, field

from huggingface_hub import ModelCard, ModelCardData

from .catalogue import Entry, Licence
from .contents import LORAS, Contents

CLASSES = {"sana": "SanaTransformer2DModel", "sana_video": "SanaVideoTransformer3DModel",
           "cogvideox": "CogVideoXTransformer3DModel", "controlnet": "SanaControlNetModel"}


@dataclass(frozen=True)
class Published:
    """What a card is about. base: the catalogue's entry, or base_name alone of another base. samples: {file in the repository:
    its prompts}. settings: rows of a table. file: of the weights."""

    repository: str
    contents: Contents
    licence: Licence
    file: str
    base: Entry | None = None
    base_name: str | None = None
    prompt: str | None = None
    samples: dict[str, list[str]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def task(self) -> str:
        if self.base and self.base.task:
            return self.base.task
        conditioning = getattr(self.contents.params, "conditioning", "none")
        if self.contents.family == "sana":
            return "text-to-image"
        return {"none": "text-to-video", "control": "video-to-video"}.get(conditioning, "image-to-video")


def header(about: Published) -> ModelCardData:
    contents = about.contents
    lora = contents.kind == LORAS
    tags = [about.task, contents.family, "comfyui", "sanacog"]
    tags += ["diffusers"] * contents.of_diffusers + ["lora", "template:sd-lora"] * lora
    tags += ["controlnet"] * (contents.kind == "controlnet")
    relation = "adapter" if lora else "quantized" if contents.quantised else "finetune"
    widget = [{"text": " / ".join(prompts), "output": {"url": file}} for file, prompts in about.samples.items()]
    more = {"base_model_relation": relation} if about.base_name else {}
    more |= {"widget": widget} if widget else {}
    more |= {"instance_prompt": about.prompt} if about.prompt else {}
    return ModelCardData(base_model=about.base_name, library_name="diffusers" if contents.of_diffusers else None,
                         pipeline_tag=about.task, tags=tags, **about.licence.metadata, **more)


def write(about: Published) -> ModelCard:
    """The card. Raises ValueError for one without a licence."""
    data = header(about)
    if not data.license or data.license == "other" and not (data.license_name and data.license_link):
        raise ValueError("there is no licence in the card, or a licence `other` without its name and link: nothing is "
                         "published so.")
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_page(about)}")


def _page(about: Published) -> str:
    contents, name = about.contents, about.repository.rpartition("/")[2]
    what = "quantised model" if contents.quantised else "fine-tune"
    what = {LORAS: "LoRA", "controlnet": "ControlNet"}.get(contents.kind, what)
    base = f"[{about.base_name}](https://huggingface.co/{about.base_name}): " if about.base_name else ""
    lines = [f"# {name}", "", f"A {what} of {base}{contents.variant}.", ""]
    if about.samples and contents.kind == LORAS:
        lines += ["<Gallery />", ""]
    else:
        lines += [line for file, prompts in about.samples.items() for line in (f"![{' / '.join(prompts)}]({file})", "")]
    if about.prompt:
        lines += [f"Prompts have `{about.prompt}` in them.", ""]
    lines += ["## In ComfyUI", "",
              f"With the nodes of SanaCog: `python run.py hub pull {about.repository}`, or put `{about.file}` into "
              f"`models/{contents.kind}`. Choose it in *{contents.loader}*; the workflow `{contents.workflow}` shows how.", ""]
    if contents.of_diffusers and about.base_name:
        lines += ["## In diffusers", "", "```python", *_code(about), "```", ""]
    if about.settings:
        lines += ["## Training", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in about.settings.items()), ""]
    return "\n".join([*lines, "## Licence", "", about.licence.terms, ""])


def _code(about: Published) -> list[str]:
    """Lines of Python that load it."""
    contents, base = about.contents, about.base_name
    sprint = getattr(contents.params, "guidance_embeds", False) or bool(about.base and "Sprint" in about.base.name
                                                                        and "teacher" not in about.base.name)
    pipeline = {"text-to-image": "SanaSprintPipeline" if sprint else "SanaPipeline", "text-to-video": "CogVideoXPipeline",
                "image-to-video": "CogVideoXImageToVideoPipeline", "video-to-video": "CogVideoXFunControlPipeline"}[about.task]
    if contents.kind == "controlnet":
        pipeline = "SanaControlNetPipeline"
    if contents.family == "sana_video":
        pipeline = "SanaVideoPipeline"
    names, given = [pipeline], ""
    load = [f'pipe.load_lora_weights("{about.repository}")']
    before = []
    if contents.kind != LORAS:
        part = "controlnet" if contents.kind == "controlnet" else "transformer"
        cls = CLASSES["controlnet" if part == "controlnet" else contents.family]
        names, given, load = [pipeline, cls], f", {part}={part}", []
        before = [f'{part} = {cls}.from_pretrained("{about.repository}", torch_dtype=torch.bfloat16)']
    return ["import torch", f"from diffusers import {', '.join(names)}", "", *before,
            f'pipe = {pipeline}.from_pretrained("{base}"{given}, torch_dtype=torch.bfloat16).to("cuda")', *load]
