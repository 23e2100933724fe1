"""The page: a tab for each task on one side, what is drawn on the other."""

import inspect
import io
import random
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from PIL import Image

from .drawing import Visit, draw, stop
from .graph import WORKFLOWS, canvas, filled, shipped, with_lora
from .look import state
from .media import Told, mask_file, picture_file, sketch_file, video_file
from .tasks import TASKS

MOST_SEEDS = 2**32
PREVIEW = 512  # px that a preview is enlarged to; the server's has a pixel for each of the latent
NO_LORA = "none"
INPUT = WORKFLOWS / "input"
FAMILIES = {"sana": "Sana", "sana_video": "SANA-Video", "cogvideox": "CogVideoX"}


@dataclass
class Studio:
    """What all visitors share. folder: where results go."""

    client: object
    offers: object
    folder: Path


def build(studio):
    """The page, a gr.Blocks."""
    with gr.Blocks(title="Sana + CogVideoX", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        visit = gr.State(Visit(), time_to_live=24 * 3600)
        gr.Markdown("# Sana + CogVideoX\nPictures and videos, drawn by the ComfyUI behind this page.", elem_id="title")
        with gr.Row(elem_id="sheet"):
            with gr.Column(scale=6, min_width=340):
                with gr.Tabs(elem_id="families"):
                    tabs = {}
                    for family, title in FAMILIES.items():
                        with gr.Tab(title, id=family), gr.Tabs():
                            tabs |= {task: _tab(task, studio.offers) for task in TASKS if task.family == family}
            with gr.Column(scale=5, min_width=340, elem_id="result"):
                result = _result(visit, studio)
        for task, tab in tabs.items():
            if tab:
                _connect(task, tab, visit, result, studio)
    return page.queue(max_size=64, default_concurrency_limit=32)  # ComfyUI serves them in turn


# --- the side with the result ---


def _result(visit, studio):
    """{name: component} of what a drawing shows."""
    said = gr.HTML(state("Choose a tab, write a prompt, press Draw."), elem_id="said")
    picture = gr.Image(label="Picture", type="filepath", interactive=False, height=440, elem_id="picture",
                       buttons=["fullscreen"], show_label=False)
    video = gr.Video(label="Video", interactive=False, height=440, autoplay=True, loop=True, visible=False, buttons=[],
                     show_label=False)
    with gr.Row():
        stopping = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop", min_width=90, size="md", scale=1)
        download = gr.DownloadButton("Download with workflow", interactive=False, elem_id="download", min_width=200, size="md", scale=2)
    drawn = gr.Gallery(label="Drawn by you", columns=4, allow_preview=False, height="auto", object_fit="cover", buttons=[],
                       interactive=False, elem_id="drawn", visible=False, show_label=False)

    def chosen(visit, event: gr.SelectData):
        path, _, about = visit.results[event.index]
        return show(path) | {said: state(about), download: gr.DownloadButton(value=path, interactive=True)}

    def show(path):
        film = path.endswith(".mp4")
        return {picture: gr.Image(None if film else path, visible=not film), video: gr.Video(path if film else None, visible=film)}

    drawn.select(chosen, visit, [said, picture, video, download], show_progress="hidden", api_visibility="private")
    # Outside the queue, so that it does not wait for what it is to stop.
    stopping.click(lambda visit: state("Stopping." if stop(studio.client, visit) else "Nothing of yours is being drawn."), visit, said,
                   queue=False, show_progress="hidden", api_name="stop")
    return {"said": said, "picture": picture, "video": video, "stop": stopping, "download": download, "drawn": drawn, "show": show}


# --- a tab ---


def _tab(task, offers):
    """{name: component} of a tab's inputs; None where the task has no model."""
    with gr.Tab(task.title, id=task.name):
        models, why_not = offers.models(task.family, task.sprint, task.conditioning, task.extra, bool(task.released))
        if not models:
            gr.Markdown(why_not, elem_classes="note")
            return None
        first = models[0]
        preset = first.preset
        examples = task.examples[0 if first.embedded else 1]
        parts = {"given": _given(task), "prompt": gr.Textbox(
            label="Prompt", lines=1 if task.sprint else 2, value=examples[0], max_length=4000,
            info="Drawn anew while you type." if task.sprint else None)}
        parts["go"] = gr.Button("Draw", variant="primary", elem_id=f"draw_{task.name}")
        if len(examples) > 1:
            gr.Examples(list(examples), parts["prompt"], label="Examples", api_visibility="private")
        with gr.Accordion("Settings", open=False):
            parts["model"] = gr.Dropdown([model.name for model in models], value=first.name, label="Model")
            with gr.Row():
                parts["steps"] = gr.Slider(1, 4 if task.sprint else 100, preset.steps, step=1, label="Steps")
                parts["guidance"] = gr.Slider(1, 15, preset.guidance, step=0.1, label="Guidance")
            with gr.Row():
                parts["seed"] = gr.Number(1, label="Seed", precision=0, minimum=0, maximum=MOST_SEEDS - 1)
                parts["random"] = gr.Checkbox(not task.sprint, label="A new seed each time")
            if task.source in ("picture", "video", "sketch"):
                label = "Strength of the sketch" if task.source == "sketch" else "How much to change"
                shown = redraws(task)
                parts["strength"] = gr.Slider(0.05, 1, task.strength, step=0.05, label=label, visible=shown)
            if task.family != "sana":
                parts["frames"] = gr.Slider(label="Frames", **_frames(preset))
            if not task.source and task.family == "sana":
                parts["ratio"] = gr.Dropdown(offers.lists["ratio"], value="1:1", label="Width to height",
                                             visible=not first.embedded)
            if not task.sprint:
                parts["negative"] = gr.Textbox("", label="Negative prompt", max_length=4000)
            with gr.Row():
                parts["lora"] = gr.Dropdown([NO_LORA, *first.loras], value=NO_LORA, label="LoRA", visible=any(
                    model.loras for model in models))
                parts["lora_strength"] = gr.Slider(-2, 2, 1, step=0.05, label="Strength of the LoRA", visible=any(
                    model.loras for model in models))
        parts = {name: part for name, part in parts.items() if part is not None}
        parts["models"] = {model.name: model for model in models}

        changing = [parts[name] for name in ("steps", "guidance", "lora", "frames", "ratio") if name in parts]

        def suited(name):
            """The settings of the model that was chosen."""
            model = parts["models"][name]
            values = [gr.Slider(value=model.preset.steps), gr.Slider(value=model.preset.guidance),
                      gr.Dropdown([NO_LORA, *model.loras], value=NO_LORA)]
            if "frames" in parts:
                values.append(gr.Slider(**_frames(model.preset)))
            if "ratio" in parts:
                values.append(gr.Dropdown(value="1:1", visible=not model.embedded))
            return values

        parts["model"].change(suited, parts["model"], changing, show_progress="hidden", api_visibility="private")
    return parts


def redraws(task):
    """Whether what is given is drawn anew, more or less: a picture that a clip begins with stays."""
    return task.source != "picture" or task.family == "sana"


def _frames(preset):
    several = preset.max_frames > preset.frame_step + 1
    return {"minimum": preset.frame_step + 1 if several else 1, "maximum": preset.max_frames, "value": preset.frames,
            "step": preset.frame_step, "visible": several}


def _given(task):
    """The component for what is given beside the prompt; None where that is nothing."""
    if task.source == "picture":
        example = "sanacog_circle.png" if task.family == "sana" else "sanacog_first_frame.png"
        return gr.Image(str(INPUT / example), type="pil", label="Picture", height=260, sources=["upload", "clipboard"])
    if task.source == "mask":
        return gr.ImageEditor(str(INPUT / "sanacog_circle.png"), type="pil", label="Paint over what is to be drawn anew", height=380,
                              sources=["upload", "clipboard"], layers=False, transforms=(), buttons=[],
                              brush=gr.Brush(default_size=40, colors=["#0d9488"], color_mode="fixed"))
    if task.source == "sketch":
        return gr.ImageEditor(Image.new("RGB", (512, 512), "white"), type="pil", label="Draw a shape; its edges guide the drawing", height=380, buttons=[],
                              sources=["upload", "clipboard"], layers=False, transforms=(),
                              brush=gr.Brush(default_size=40, colors=["#000000"], color_mode="fixed"))
    if task.source == "video":
        return gr.Video(str(INPUT / "sanacog_moving_square.mp4"), label="Video", height=260, sources=["upload"])
    return None


# --- from a tab to the result ---


INPUTS = ("prompt", "given", "model", "steps", "guidance", "seed", "random", "strength", "frames", "ratio", "negative", "lora",
          "lora_strength")


def _connect(task, tab, visit, result, studio):
    names = [name for name in INPUTS if name in tab]
    outputs = [*(result[name] for name in ("said", "picture", "video", "stop", "download", "drawn")), tab["seed"]]

    def run(visit, *values):
        values = dict(zip(names, values))
        if values["random"]:
            values["seed"] = random.randrange(MOST_SEEDS)
        try:
            yield from told(visit, values)
        except Told as error:
            if str(error) != "Stopped.":
                gr.Warning(str(error))
            yield {result["said"]: state(str(error), trouble=str(error) != "Stopped."), result["stop"]: gr.Button(interactive=False)}

    def told(visit, values):
        model = tab["models"][values["model"]]
        workflow, carried, about = prepared(task, model, values, studio.client)
        for news in draw(studio.client, visit, workflow, studio.folder, carried):
            if not news.files:
                shown = {result["said"]: state(news.text, news.part), result["stop"]: gr.Button(interactive=True)}
                if news.picture:
                    shown |= {result["picture"]: gr.Image(enlarged(news.picture), visible=True), result["video"]: gr.Video(visible=False)}
                yield shown
        if not news.files:
            raise Told("ComfyUI drew nothing; its log says why.")
        about = f"{about}, {news.seconds:.1f} s"
        visit.results[:0] = [(str(path), f"seed {values['seed']}", about) for path in news.files]
        path = visit.results[0][0]
        yield result["show"](path) | {
            result["said"]: state(about), result["stop"]: gr.Button(interactive=False), tab["seed"]: values["seed"],
            result["download"]: gr.DownloadButton(value=path, interactive=True),
            result["drawn"]: gr.Gallery([drawn[:2] for drawn in visit.results], visible=True)}

    # The page's API names its values by these.
    run.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
                                           for name in ("visit", *names)])
    arguments = dict(inputs=[visit, *(tab[name] for name in names)], outputs=outputs, show_progress="hidden")
    tab["go"].click(run, api_name=task.name, **arguments)
    if task.sprint:
        tab["prompt"].input(run, trigger_mode="always_last", api_visibility="private", **arguments)
    else:
        tab["prompt"].submit(run, api_visibility="private", **arguments)


def prepared(task, model, values, client):
    """(the workflow to run, the canvas' workflow that goes with it or None, a line about the settings). Uploads what was given.

    Raises Told.
    """
    if not values["prompt"].strip():
        raise Told("Write a prompt first.")
    name, preset = task.workflow(model), model.preset
    chosen = {**model.files, "steps": values["steps"], "guidance": values["guidance"], "seed": values["seed"]}
    size = preset.width, preset.height
    if task.source in ("picture", "mask", "sketch"):
        data, size = {"picture": picture_file, "mask": mask_file, "sketch": sketch_file}[task.source](values["given"], preset)
        chosen["image"] = client.upload(data, f"sanacog_page_{task.source}.png")
    if task.source == "video":
        data, values["frames"] = video_file(values["given"], preset, values["frames"])
        chosen["file"] = client.upload(data, "sanacog_page.mp4")
    elif task.family != "sana":
        chosen |= {"frames": values["frames"], "fps": preset.fps, "width": size[0], "height": size[1]}
    elif task.source == "sketch" or not task.source and model.embedded:
        chosen |= {"width": size[0], "height": size[1]}
    elif not task.source:
        chosen |= {"base": SIZES.get(preset.width, "1024"), "aspect_ratio": values["ratio"]}
    if task.source in ("picture", "video") and redraws(task):
        chosen["denoise"] = values["strength"]
    if task.source == "sketch":
        chosen["strength"] = values["strength"]
    workflow = filled(shipped(name), chosen, values["prompt"], values.get("negative"))
    if lora := values.get("lora", NO_LORA) != NO_LORA:
        if values["lora"] not in model.loras:
            raise Told(f"{values['lora']} is not for {model.name}.")
        workflow = with_lora(workflow, values["lora"], values["lora_strength"])
    about = [f"seed {values['seed']}", f"{values['steps']} steps", f"guidance {values['guidance']:g}"]
    about += [f"{values['frames']} frames"] if preset.frames else []
    about += [f"{values['lora']} at {values['lora_strength']:g}"] if lora else []
    return workflow, canvas(name, workflow), ", ".join(about)


SIZES = {512: "512", 1024: "1024", 2048: "2K", 4096: "4K"}  # of the node Sana Resolution


def enlarged(data):
    """A preview as a picture that is shown smoothly."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    scale = PREVIEW / max(picture.size)
    return picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
