"""The training of the embedded tiny Sana: text encoder, DC-AE and transformer, and what is told of them."""
from __future__ import annotations

import datetime
import json
import random
import shutil
from pathlib import Path

import torch

from . import autoencoder, drawn_folders, gemma, transformer
from .loop import Fit, contact_sheet
from .recipe import Recipe, half, read_file, whole, write_chapter
from ...evaluation.drawn import groups, shapes, words
from ...sana_core import checkpoint
from ...sana_core.autoencoder import AutoencoderDC

GATE = 0.98  # share of reconstructions in which the judge must find the right one of the main shapes
WIDER = "all six shapes, both sizes"
FILES = {"text": "text_encoders/sanacog_tiny_gemma2.safetensors", "autoencoder": "vae/sanacog_tiny_dcae.safetensors",
         "transformer": "diffusion_models/sanacog_tiny_sana.safetensors"}


class Sana(Recipe):
    """Text, then autoencoder and its decoder on, then the transformer."""

    name = "sana"
    stages = ("text", "autoencoder", "decoder", "transformer")
    steps = {"text": 600, "autoencoder": 3000, "decoder": 3000}
    share = {"text": 0.1, "autoencoder": 0.45, "decoder": 0.45}
    configured = {"transformer": "train/tiny_sana"}
    drawn = {"transformer": 16384}
    files = FILES
    title = "The embedded tiny Sana"
    further = ("text", "decoder", "transformer")

    def text(self) -> Fit:
        def make():
            further = self.options.further
            return gemma.TextTraining(gemma.from_file(*read_file(self.options.source / FILES["text"])) if further else None)
        return self.fit("text", make, average=0.98)

    def autoencoder(self) -> Fit:
        return self.fit("autoencoder", autoencoder.Autoencoding, lr=1.5e-3, average=0.995)

    def decoder(self) -> Fit:
        return self.fit("decoder", lambda: autoencoder.Decoding(self.pictures("autoencoder").requires_grad_(True)),
                        lr=self.rate(1.2e-3), average=0.995, split=lambda modules: autoencoder.kernels(modules.model.decoder))

    def plan(self, stage: str) -> drawn_folders.Plan:
        return plan

    def start(self, stage: str) -> list[str]:
        """The transformer's latents are the first autoencoder's: its decoder, which trains on, does not change them."""
        folder = self.work / "start"
        if self.options.further:
            if self.from_file("text"):
                return files_of(self.options.source)
            self.write_text(folder)
            return [*files_of(self.options.source), f"model.text_encoder={folder / FILES['text']}"]
        self.write_text(folder)
        self.write("autoencoder", half(self.pictures("autoencoder")), autoencoder.CONFIG, folder)
        torch.manual_seed(self.stages.index(stage) + 1)
        self.write("transformer", checkpoint.from_canonical(transformer.build().state_dict(), "diffusers"), transformer.PARAMS.to_diffusers(), folder)
        return files_of(folder)

    def write_text(self, folder: Path | None = None) -> None:
        text = self.done("text").modules
        self.write("text", *gemma.to_file(text.model, text.tokenizer_model), folder)

    def pictures(self, stage: str) -> AutoencoderDC:
        """The autoencoder as that stage left it."""
        return load_models(self.options.source, self.device)[2] if self.from_file(stage) else self.done(stage).modules.model

    def gate(self, stage: str) -> None:
        if stage != "transformer":
            return
        figures, _, _ = autoencoder.evaluate_autoencoder(self.pictures("decoder"), self.options.cases or 64)
        if figures["main shape"] < GATE:
            print(f"train: the autoencoder keeps the shape in {figures['main shape']:.3f} of pictures, {GATE} is wanted: "
                  f"the transformer cannot do better than that. Train it longer if there is time.")

    def export(self) -> None:
        """Write the files of what was trained, measure what they can do as they are on disk, and write README.md and the
        sheets."""
        if not self.from_file("text"):
            self.write_text()
        if not self.from_file("decoder"):
            self.write("autoencoder", half(self.pictures("decoder")), autoencoder.CONFIG)
        if self.began("transformer"):
            self.keep("transformer")
        if self.began("transformer") or self.options.further:
            self.report()

    def report(self) -> None:
        output, cases = self.options.output, self.options.cases or 64
        text, tokenizer, pictures, sana = load_models(output, self.device)
        recall, shown, drawn = autoencoder.evaluate_autoencoder(pictures, 2 * cases)
        contact_sheet(torch.cat([part for i in range(0, 24, 8) for part in (shown[i : i + 8], drawn[i : i + 8])]), self.work / "autoencoder.png")
        rows = {}
        for instruction in (False, True):
            figures, sheet = transformer.evaluate(sana, pictures, text, tokenizer, instruction=instruction, count=cases)
            rows["with the instruction" if instruction else "prompt alone"] = figures
            if not instruction:
                contact_sheet(sheet, self.work / "contact_sheet.png", captions=shapes.evaluation_scenes()[1][: len(sheet)])
        rows[WIDER] = transformer.evaluate(sana, pictures, text, tokenizer, count=96 * cases // 64, cases=shapes.wider_scenes)[0]
        several, sheet = transformer.evaluate_several(sana, pictures, text, tokenizer, count=cases)
        prompts = [prompt for some in transformer.SEVERAL.values() for prompt in some()[:cases]]
        contact_sheet(sheet[::5], self.work / "several.png", columns=6, side=170, captions=prompts[::5])
        factors, bias = autoencoder.preview_factors(pictures)
        (self.work / "preview.json").write_text(json.dumps({"factors": factors.tolist(), "bias": bias.tolist()}))
        figures = {"reconstruction": recall, **rows, **several}
        (self.work / "figures.json").write_text(json.dumps(figures, indent=1))
        self.keep_curve("loss.png")
        write_chapter(output / "README.md", self.title, self.chapter(figures, cases))
        for name in ("contact_sheet.png", "several.png"):
            shutil.copy(self.work / name, output)
        print(json.dumps(figures, indent=1))

    def chapter(self, figures: dict, cases: int) -> list[str]:
        """Lines for models/README.md: what the files are, their sums, and what was measured."""
        names = ["colour", "background", "shape", "size", "place", "colour+background", "colour+background+shape", "fit"]
        lines = [
            "Three files in ComfyUI's folder names, fp16, with diffusers' (Gemma: Hugging Face's) key names. They have the real",
            "family's architecture and latent geometry (32 channels at 1/32) and know one world: flat shapes on flat backgrounds,",
            "256x256, a single one (`evaluation/drawn/shapes.py`), two, or up to three alike (`evaluation/drawn/groups.py`).",
            "`python run.py train tiny-sana` makes them from nothing.", "",
            *self.file_table(),
            "", f"Measured on {datetime.date.today().isoformat()} on the files as they are here, in fp32 on {self.device.type.upper()}:", "",
            f"| {cases} held-out prompts, large, Euler, 20 steps, CFG 4.5, seeds 0 to {cases - 1} | " + " | ".join(names) + " |",
            "|" + "---|" * (len(names) + 1)]
        for row in ("prompt alone", "with the instruction", WIDER):
            lines.append(f"| {row} | " + " | ".join(f"{figures[row][n]:.3f}" for n in names) + " |")
        lines += ["", f"| {cases} held-out prompts each, the same way | all right | background | both colours | both shapes | relation | number |", "|---|---|---|---|---|---|---|"]
        for row in transformer.SEVERAL:
            lines.append(f"| {row} | " + " | ".join(f"{figures[row][n]:.3f}" if n in figures[row] else ""
                                                    for n in ("all", "background", "colours", "shapes", "relation", "count")) + " |")
        recall = figures["reconstruction"]
        return lines + [
            "", "The prompts are `evaluation.drawn.shapes.evaluation_scenes()`: colour, shape and background in combinations that no training",
            "picture and no training prompt had, of the four main shapes (cross and star are extras that the models saw less of);",
            f"half of them name a place, and place is judged on those alone. The last row is of {96 * cases // 64} other prompts, `wider_scenes()`. Fit is",
            "the mean overlap (intersection over union) of what was drawn with the ideal shape at its place and size. (The tokenizer's corpus has sentences of both sides.) `evaluation/drawn/judge.py` judges from pixels.", "",
            "Two shapes are like `" + words.two_shapes()[0] + "`, two things of which no training picture",
            f"showed both; one to three are like `{words.counting()[2]}`, in combinations of colour, shape and background that",
            "were held out (`evaluation/drawn/words.py`). Both shapes: they are right and nothing else is there. Number: exactly so many, and nothing else.", "",
            f"Autoencoder, {2 * cases} held-out pictures of both sizes and all six shapes: PSNR {recall['psnr']:.1f} dB; after reconstruction the",
            f"judge finds the shape in {recall['shape']:.3f} ({recall['main shape']:.3f} of the four main ones), its colour in "
            f"{recall['colour']:.3f}, the background in {recall['background']:.3f}.", "",
            self.history(), "", *self.curves("loss.png"), "", "![held-out prompts](contact_sheet.png)", "", "![prompts of several shapes](several.png)"]


def plan(count: int, generator: torch.Generator, rng: random.Random):
    """drawn_folders.Plan of the drawn world: half of the pictures show a single shape, half several."""
    scenes, several = shapes.sample_scenes(count - count // 2, generator), groups.sample(count // 2, generator)
    captions = [shapes.any_prompt(scene, rng)[0] for scene in scenes.tolist()] + [groups.any_prompt(group, rng) for group in several.tolist()]
    return captions, lambda: {drawn_folders.SHOWN: torch.cat([shapes.draw(scenes, generator), groups.draw(several, generator)])}


def files_of(folder: Path) -> list[str]:
    """Settings that name the files of a folder of embedded models."""
    settings = {"text": "text_encoder", "autoencoder": "autoencoder", "transformer": "transformer"}
    return [f"model.{name}={folder / FILES[stage]}" for stage, name in settings.items()]


def load_models(folder: Path, device=torch.device("cpu")):
    """The exported files in fp32: (Gemma, tokenizer, autoencoder, transformer)."""
    def read(stage):
        return read_file(folder / FILES[stage])
    text, tokenizer = gemma.from_file(*read("text"))
    pictures, sana = autoencoder.build(), transformer.build()
    pictures.load_state_dict(whole(read("autoencoder")[0]))
    sana.load_state_dict(whole(checkpoint.to_canonical(read("transformer")[0], "diffusers")))
    pictures.to(memory_format=torch.channels_last)
    return text.to(device), tokenizer, pictures.eval().to(device), sana.eval().to(device)
