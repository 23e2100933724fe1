"""The page: tabs of widgets, each with its picture or clip, what it says meanwhile, and what was drawn before."""

from __future__ import annotations

import io
import random
import uuid

import gradio as gr

from .drawing import Session, Told, draw, stop
from .offers import Offers, preset_of
from .tabs import ASPECTS, TABS, Choices, has_sizes, is_embedded, source_of, workflow_of

NO_LORA = "none"
AT_ONCE = 8  # drawings that may wait at ComfyUI at a time, which computes one after the other
CSS = """
.gradio-container { max-width: min(1180px, 100vw) !important; min-width: 0 !important; margin: auto; }
.sanacog-said { min-height: 1.6em; }
footer { display: none !important; }
@media (max-width: 640px) { .gradio-container { padding: 8px !important; } }
"""
INTRO = """# Sana and CogVideoX
Pictures by NVIDIA's Sana, videos by CogVideoX, drawn by a ComfyUI behind this page. Every result carries its workflow: drop it onto
ComfyUI's canvas."""
EMBEDDED = "The embedded model knows prompts like *{example}*: a colour, a shape, a background."

SPRINT = "It draws while you type."


def look():
    """Arguments of launch() for how it looks."""
    return {"theme": gr.themes.Soft(primary_hue="emerald", neutral_hue="slate", font=["system-ui", "sans-serif"]), "css": CSS}


def build(client, offers: Offers) -> gr.Blocks:
    """The page in front of the ComfyUI of a client. `.launch(**look())` shows it."""
    with gr.Blocks(title="Sana and CogVideoX", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown(INTRO)
        with gr.Tabs():
            for tab in TABS:
                with gr.Tab(tab.title, id=tab.name, elem_id=tab.name):
                    offer = tab.offer(offers)
                    if offer.models:
                        add_tab(tab, offer, client, offers)
                    else:
                        gr.Markdown(f"Not offered here: {offer.missing}")
    return page.queue(default_concurrency_limit=AT_ONCE)


def add_tab(tab, offer, client, offers):
    first = preset_of(offer.models[0])
    session = gr.State(Session())
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            prompt = gr.Textbox(label="Prompt", value=tab.example if is_embedded(offer.models[0]) else "", lines=2,
                                placeholder="What to draw")
            source = source_widget(tab, first)
            with gr.Row():
                go = gr.Button("Draw", variant="primary", elem_id=f"{tab.name}_go")
                halt = gr.Button("Stop", elem_id=f"{tab.name}_stop")
            hint = gr.Markdown(hint_of(tab, offer.models[0]))
            with gr.Accordion("Settings", open=False):
                model = gr.Dropdown(list(offer.models), value=offer.models[0], label="Model")
                steps = gr.Slider(1, 4 if tab.sprint else 100, value=first.steps if first else 20, step=1, label="Steps")
                guidance = gr.Slider(0.0, 15.0, value=first.guidance if first else 4.5, step=0.1, label="Guidance")
                strength = gr.Slider(0.05, 1.0, value=tab.strength or 1.0, step=0.05, label="Strength: how much is redrawn",
                                     visible=tab.strength is not None)
                aspect = gr.Dropdown(list(ASPECTS), value="1:1", label="Width to height", visible=has_sizes(tab, first))
                with gr.Row():
                    seed = gr.Number(value=0, precision=0, minimum=0, label="Seed")
                    anew = gr.Checkbox(value=not tab.sprint, label="A new seed each time")
                negative = gr.Textbox(label="Negative prompt", visible=not tab.sprint)
                lora = gr.Dropdown([NO_LORA, *offers.lists["lora"]], value=NO_LORA, label="LoRA")
                lora_strength = gr.Slider(-2.0, 2.0, value=1.0, step=0.05, label="LoRA's strength")
        with gr.Column(min_width=300):
            said = gr.Markdown("", elem_id=f"{tab.name}_said", elem_classes="sanacog-said")
            picture = gr.Image(label="Picture", type="filepath", format="png", interactive=False, height=420,
                               elem_id=f"{tab.name}_picture", visible=True, show_label=False, buttons=["download", "fullscreen"])
            clip = gr.Video(label="Clip", interactive=False, autoplay=True, loop=True, height=420, visible=False,
                            elem_id=f"{tab.name}_clip")
            files = gr.File(label="With its workflow in it", visible=False, interactive=False, file_count="multiple")
            drawn = gr.Gallery(label="Drawn before", columns=4, height=180, visible=False, elem_id=f"{tab.name}_drawn",
                               type="filepath", format="png", object_fit="contain", preview=False) if not tab.video else gr.State(None)
    before = gr.State([])
    inputs = [session, before, prompt, negative, model, steps, guidance, seed, anew, aspect, strength, lora, lora_strength]
    outputs = [said, picture, clip, files, drawn, before, seed]

    def run(session, before, prompt, negative, model, steps, guidance, seed, anew, aspect, strength, lora, lora_strength,
            source=None):
        seed = random.randrange(2**32) if anew else int(seed or 0)
        choices = Choices(model or "", prompt or "", negative or "", int(steps), float(guidance), seed, aspect, float(strength),
                          "" if lora == NO_LORA else lora, float(lora_strength))
        yield from show(tab, client, offers, session, before, choices, source)

    event = {"fn": run, "inputs": [*inputs, *([source] if source else [])], "outputs": outputs, "show_progress": "hidden",
             "concurrency_limit": AT_ONCE, "concurrency_id": "draw"}
    gr.on([go.click, prompt.submit], api_name=tab.name, trigger_mode="once", **event)
    if tab.sprint:
        prompt.input(trigger_mode="always_last", api_visibility="undocumented", **event)
    halt.click(lambda session: stop(client, session), [session], [said], api_name=f"{tab.name}_stop", concurrency_limit=None,
               show_progress="hidden")
    model.change(lambda model: settings_of(tab, model), [model], [hint, steps, guidance, aspect], api_visibility="undocumented",
                 show_progress="hidden")


def source_widget(tab, preset):
    """The widget for what is given beside words, or None."""
    if tab.source == "image":
        return gr.Image(label="Picture", type="pil", height=260, elem_id=f"{tab.name}_source")
    if tab.source == "video":
        return gr.Video(label="Video", height=260, elem_id=f"{tab.name}_source")
    if tab.source == "mask":
        return gr.ImageEditor(label="Paint over what is to change", type="pil", height=380, layers=False,
                              brush=gr.Brush(default_size=24, colors=["#10b981"], color_mode="fixed"), transforms=(),
                              elem_id=f"{tab.name}_source")
    if tab.source == "sketch":
        side = min(preset.width if preset else 512, 512)
        return gr.Sketchpad(label="Draw the outline", type="pil", height=380, canvas_size=(side, side), layers=False,
                            brush=gr.Brush(default_size=6, colors=["#000000"], color_mode="fixed"), elem_id=f"{tab.name}_source")
    return None


def hint_of(tab, model):
    return " ".join([SPRINT] * tab.sprint + [EMBEDDED.format(example=tab.example)] * is_embedded(model))


def settings_of(tab, model):
    """What follows another model: its hint and its usual settings."""
    preset = preset_of(model or "")
    return (hint_of(tab, model or ""), *((gr.update(value=preset.steps), gr.update(value=preset.guidance)) if preset
                                         else (gr.update(), gr.update())), gr.update(visible=has_sizes(tab, preset)))


def show(tab, client, offers, session, before, choices, given):
    """What the widgets show, from the click to the result."""
    unchanged = gr.update()

    def now(said, picture=unchanged, clip=unchanged, files=unchanged, drawn=unchanged, before=before):
        return said, picture, clip, files, drawn if not tab.video else None, before, choices.seed

    try:
        uploaded = ""
        if tab.source:
            data, ending = source_of(tab, given, preset_of(choices.model))
            uploaded = client.upload(data, f"page_{uuid.uuid4().hex}{ending}")
        workflow = workflow_of(tab, offers, choices, uploaded)
        for news in draw(client, session, workflow):
            if news.files:
                paths = [str(path) for path in news.files]
                text = f"Seed {choices.seed}, {choices.steps} steps, guidance {choices.guidance:g}, {news.text}"
                shown = gr.update(value=paths, visible=True)
                if tab.video:
                    yield now(text, gr.update(visible=False), gr.update(value=paths[0], visible=True), shown)
                else:
                    before = [(path, text) for path in paths] + before
                    yield now(text, gr.update(value=paths[0], visible=True), files=shown,
                              drawn=gr.update(value=before, visible=True), before=before)
            elif news.picture:
                yield now(unchanged, gr.update(value=opened(news.picture), visible=True), gr.update(visible=False))
            else:
                yield now(news.text)
    except (Told, ValueError) as error:
        yield now(str(error))
    except OSError as error:
        yield now(f"ComfyUI did not take it: {error}")


def opened(data: bytes):
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")
