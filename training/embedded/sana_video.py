"""The training of the embedded tiny SANA-Video, with the tiny Sana's text encoder and the tiny CogVideoX' autoencoder."""
from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import torch

from . import cogvideox, gemma, sana
from . import sana_video_transformer as transformer
from . import video_autoencoder as vae
from .cogvideox import side_by_side
from .loop import Fit
from .recipe import Recipe, half, read_file, whole, write_chapter
from ...evaluation.drawn import clips, roaming
from ...sana_core.video_checkpoint import from_canonical, to_canonical

CLIPS = 3072  # cached for the transformer
GUIDANCE, STEPS = 4.5, 20
KINDS = ("text to video", "image to video", "block by block")
FILES = {"transformer": "diffusion_models/sanacog_tiny_sana_video.safetensors"}


class SanaVideo(Recipe):
    """The transformer, on the latents of an autoencoder and the states of a text encoder that are there."""

    name = "sana_video"
    stages = ("transformer",)
    steps = {"transformer": 6000}
    share = {"transformer": 1.0}
    files = FILES
    title = "The embedded tiny SANA-Video"
    further = ("transformer",)

    def transformer(self) -> Fit:
        def make():
            start = load_transformer(self.options.source).train() if self.options.further else transformer.build()
            return transformer.Flow(start, self.cache(), self.device)
        return self.fit("transformer", make, lr=1.5e-3, average=0.998, split=lambda modules: transformer.matrices(modules.model))

    def cache(self) -> dict[str, torch.Tensor]:
        def make():
            text, tokenizer, autoencoder = partners(self.options.source)
            return transformer.make_cache(autoencoder, text, tokenizer, self.options.cached or CLIPS, self.seed("transformer"))
        return self.cached("cache", make)

    def export(self) -> None:
        """Write the file, measure what it can do as it is on disk, and write its chapter of README.md and the sheets."""
        if not self.from_file("transformer"):
            model = self.done("transformer").modules.model
            self.write("transformer", half(from_canonical(model.state_dict(), "diffusers")), transformer.PARAMS.to_diffusers())
        self.report()

    def report(self) -> None:
        output, cases = self.options.output, self.options.cases or 48
        text, tokenizer, autoencoder = partners(self.options.source)
        model = load_transformer(output)
        figures = {}
        for kind in KINDS:
            figures[kind], drawn = transformer.evaluate(model, autoencoder, text, tokenizer, picture=kind == "image to video", steps=STEPS,
                                                        long=kind == "block by block", guidance=GUIDANCE, count=cases)
            shown = drawn[:8, :, :: drawn.shape[2] // 8]
            side_by_side(shown, self.work / f"{kind.split()[0]}.png", clips.evaluation_scenes()[1])
        (self.work / "figures.json").write_text(json.dumps(figures, indent=1))
        self.keep_curve("sana_video_loss.png")
        write_chapter(output / "README.md", self.title, self.chapter(figures, cases))
        for kind in KINDS:
            shutil.copy(self.work / f"{kind.split()[0]}.png", output / f"sana_video_{kind.split()[0]}.png")
        print(json.dumps(figures, indent=1))

    def chapter(self, figures: dict, cases: int) -> list[str]:
        names = ["colour", "background", "colour+background", "direction", "colours+direction"]
        lines = [
            "One file, fp16, with diffusers' key names: text to video, image to video, and, block by block, LongSANA. It goes with the",
            "tiny Sana's text encoder and the tiny CogVideoX' autoencoder, whose latents have Wan's geometry (16 channels, 1/8, 1/4).",
            f"Its world is that of the tiny CogVideoX without an end: {roaming.FRAMES} frames of {clips.PICTURE}x{clips.PICTURE} at {roaming.RATE} a second,",
            "and what leaves the picture on one side comes in on the other (`evaluation/drawn/roaming.py`).",
            "`python run.py train tiny-sana-video` trains it.", "", *self.file_table(), "",
            f"Measured on {datetime.date.today().isoformat()} on the file as it is here, in fp32 on {self.device.type.upper()}:", "",
            f"| {cases} held-out prompts, Euler, {STEPS} steps, CFG {GUIDANCE:g}, seeds 0 to {cases - 1} | " + " | ".join(names) + " |",
            "|" + "---|" * (len(names) + 1)]
        lines += [f"| {row} | " + " | ".join(f"{found[n]:.3f}" for n in names) + " |" for row, found in figures.items()]
        lines += ["", "The prompts are those of the tiny CogVideoX. Colours must be right in two thirds of the frames; the direction in every stretch",
                  "of 17 frames, by the way of the shape's middle round the picture.", "",
                  f"Image to video begins with the first frame of a drawn clip of the prompt's scene: mean PSNR of the result's first frame to it "
                  f"{figures['image to video']['first frame']:.1f} dB.", "", self.history(), "", *self.curves("sana_video_loss.png"), "",
                  "![held-out prompts, text to video](sana_video_text.png)", "", "![held-out prompts, image to video](sana_video_image.png)", "",
                  f"Block by block ({4 * transformer.LONG - 3} frames, {transformer.BLOCK} latent frames a block, the last one seen, every step to a level with fresh",
                  "noise), every tenth frame:", "", "![held-out prompts, block by block](sana_video_block.png)"]
        return lines


def partners(folder: Path):
    """(Gemma, tokenizer, autoencoder) of the files that the model goes with, in fp32."""
    text, tokenizer = gemma.from_file(*read_file(folder / sana.FILES["text"]))
    autoencoder = vae.build()
    autoencoder.load_state_dict(whole(read_file(folder / cogvideox.FILES["autoencoder"])[0]))
    return text, tokenizer, autoencoder.eval().requires_grad_(False)


def load_transformer(folder: Path):
    """The exported file in fp32."""
    model = transformer.build()
    model.load_state_dict(whole(to_canonical(read_file(folder / FILES["transformer"])[0], "diffusers")))
    return model.eval()
