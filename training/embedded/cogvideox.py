"""The training of the embedded tiny CogVideoX: text encoder, causal VAE, transformers from text and from a picture."""
from __future__ import annotations

import datetime
import json
import random
import shutil
from functools import partial
from pathlib import Path

import torch

from . import drawn_folders, t5, video_transformer
from . import video_autoencoder as vae
from .autoencoder import kernels
from .loop import Fit, contact_sheet
from .recipe import Recipe, half, read_file, whole, write_chapter
from ...cogvideo_core.autoencoder import CogVideoVAE
from ...evaluation.drawn import clips

SENTENCES = 2  # a drawn clip
LARGE_SHARE = 2 / 3  # of the clips that the transformers are trained on
GATE = 0.98  # share of reconstructions with the right colours, and with the right direction
SAMPLED_STEPS = 20  # of the report, DDIM
GUIDANCE = 2.0, 3.0, 6.0  # the workflows draw with the first
AT_LARGE = f", {clips.LARGE.frames} frames of {clips.LARGE.side}x{clips.LARGE.side}"
RECALL = "(reconstructions)"
KINDS = {"transformer": "text to video", "image": "image to video"}
FILES = {"text": "text_encoders/sanacog_tiny_t5.safetensors", "autoencoder": "vae/sanacog_tiny_cogvideox_vae.safetensors",
         "transformer": "diffusion_models/sanacog_tiny_cogvideox.safetensors",
         "image": "diffusion_models/sanacog_tiny_cogvideox_i2v.safetensors"}


class CogVideoX(Recipe):
    """Text, then autoencoder and its decoder on, then text to video, then image to video from its weights."""

    name = "cogvideox"
    stages = ("text", "autoencoder", "decoder", "transformer", "image")
    steps = {"text": 1500, "autoencoder": 2000, "decoder": 2000}
    share = {"text": 0.1, "autoencoder": 0.6, "decoder": 0.3}
    configured = {"transformer": "train/tiny_cogvideox", "image": "train/tiny_cogvideox_i2v"}
    drawn = {"transformer": 4096, "image": 4096}
    suffix = ".mp4"
    files = FILES
    title = "The embedded tiny CogVideoX"
    further = ("decoder", "transformer", "image")

    def text(self) -> Fit:
        return self.fit("text", t5.TextTraining, average=0.98)

    def autoencoder(self) -> Fit:
        return self.fit("autoencoder", vae.Autoencoding, lr=2e-3, average=0.99)

    def decoder(self) -> Fit:
        return self.fit("decoder", lambda: vae.Decoding(self.autoencoded()), lr=self.rate(1e-3), average=0.99,
                        split=lambda modules: kernels(modules.model.decoder))

    def plan(self, stage: str) -> drawn_folders.Plan:
        """Clips made from text leave little to chance, so little has to be learnt; given pictures may show anything."""
        return partial(plan, {"transformer": clips.NARROW, "image": clips.WIDE}[stage])

    def start(self, stage: str) -> list[str]:
        """The latents are the first autoencoder's: its decoder, which trains on, does not change them. Image to video begins as the
        trained text to video, without its picture."""
        if self.options.further:
            return files_of(self.options.source, stage)
        folder = self.work / "start"
        self.write_text(folder)
        self.write("autoencoder", half(self.autoencoded()), vae.to_config(), folder)
        torch.manual_seed(self.stages.index(stage) + 1)
        if stage == "image":
            text_to_video = video_transformer.build()
            text_to_video.load_state_dict(whole(read_file(self.result("transformer"))[0]))
            model = video_transformer.with_picture(text_to_video)
        else:
            model = video_transformer.build()
        self.write(stage, half(model), model.params.to_diffusers(), folder)
        return files_of(folder, stage)

    def write_text(self, folder: Path | None = None) -> None:
        text = self.done("text").modules
        self.write("text", *t5.to_file(text.model, text.tokenizer_model), folder)

    def autoencoded(self) -> CogVideoVAE:
        """The autoencoder whose latents the transformers learn."""
        return (load_models(self.options.source, self.device)[2] if self.from_file("autoencoder")
                else self.done("autoencoder").modules.model)

    def pictures(self) -> CogVideoVAE:
        """The autoencoder, with the best decoder that there is."""
        if self.from_file("decoder"):
            return self.autoencoded()
        return self.done("decoder" if self.began("decoder") else "autoencoder").modules.model

    def gate(self, stage: str) -> None:
        if stage != "transformer":
            return
        figures, _, _ = vae.evaluate_autoencoder(self.pictures(), self.options.cases or 48)
        for name in ("colour+background", "direction"):
            if figures[name] < GATE:
                print(f"train: the autoencoder keeps {name} in {figures[name]:.3f} of clips, {GATE} is wanted: the "
                      f"transformer cannot do better than that. Train it longer if there is time.")

    def export(self) -> None:
        """Write the files of all stages that have begun, measure what they can do as they are on disk, and write
        README.md and the sheets."""
        if not self.from_file("text"):
            self.write_text()
        if not self.from_file("decoder"):
            self.write("autoencoder", half(self.pictures()), vae.to_config())
        for stage in ("transformer", "image"):
            if self.began(stage):
                self.keep(stage)
        self.report()

    def report(self) -> None:
        output, cases = self.options.output, self.options.cases or 48
        text, tokenizer, autoencoder, models = load_models(output, self.device)
        recall, shown, drawn = vae.evaluate_autoencoder(autoencoder, cases)
        large_recall = vae.evaluate_autoencoder(autoencoder, cases, form=clips.LARGE)[0]
        side_by_side(torch.stack([shown[:8], drawn[:8]], dim=1).flatten(0, 1), self.work / "autoencoder.png")
        factors, bias = vae.preview_factors(autoencoder)
        (self.work / "preview.json").write_text(json.dumps({"factors": factors.tolist(), "bias": bias.tolist()}))
        figures, prompts = {RECALL: recall, f"{RECALL}{AT_LARGE}": large_recall}, clips.evaluation_scenes()[1]
        for stage, model in models.items():
            def draw(guidance, form, where):
                figures[f"{KINDS[stage]}{where}, CFG {guidance:g}"], sheet = video_transformer.evaluate(
                    model, autoencoder, text, tokenizer, count=cases, picture=stage == "image", steps=SAMPLED_STEPS, guidance=guidance, form=form)
                return sheet
            for guidance in GUIDANCE[::-1]:
                draw(guidance, clips.SMALL, "")
            sheet = draw(GUIDANCE[0], clips.LARGE, AT_LARGE)
            side_by_side(sheet[:10, :, ::2], self.work / f"{stage}.png", prompts)
        (self.work / "figures.json").write_text(json.dumps(figures, indent=1))
        self.keep_curve("cogvideox_loss.png")
        write_chapter(output / "README.md", self.title, self.chapter(figures, cases))
        for stage in models:
            shutil.copy(self.work / f"{stage}.png", output / f"cogvideox_{stage}.png")
        print(json.dumps(figures, indent=1))

    def chapter(self, figures: dict, cases: int) -> list[str]:
        """Lines for models/README.md: what the files are, their sums, and what was measured."""
        names = ["colour", "background", "colour+background", "direction", "colours+direction", "shape"]
        lines = [
            "Four files in ComfyUI's folder names, fp16, with diffusers' (T5: Hugging Face's) key names. They have the real",
            "family's architecture and latent geometry (16 channels, 1/8 in space, 1/4 in time) and know one world: one flat",
            f"shape that moves in a straight line on a flat background, {said_of(clips.SMALL)} or {said_of(clips.LARGE)} a second, drawn by",
            "`evaluation/drawn/clips.py`. `python run.py train tiny-cogvideox` makes them from nothing. Prompts read like",
            f"`{clips.evaluation_scenes()[1][0]}`.", "",
            *self.file_table(),
            "", f"Measured on {datetime.date.today().isoformat()} on the files as they are here, in fp32 on {self.device.type.upper()}:", "",
            f"| {cases} held-out prompts, DDIM, {SAMPLED_STEPS} steps, seeds 0 to {cases - 1} | " + " | ".join(names) + " |",
            "|" + "---|" * (len(names) + 1)]
        for row, found in sorted(figures.items(), key=lambda item: item[0].startswith(RECALL)):  # they come last
            lines.append(f"| {row} | " + " | ".join(f"{found[n]:.3f}" if n in found else "" for n in names) + " |")
        recall, large_recall = figures[RECALL], figures[f"{RECALL}{AT_LARGE}"]
        lines += [
            "", "The prompts are `evaluation.drawn.clips.evaluation_scenes()`: colour, shape and background in combinations that no training",
            "clip and no training prompt had (the tokenizer's corpus has sentences of both sides), each direction in a quarter of",
            "them. `evaluation/drawn/clip_judge.py` judges from pixels: colours and shape must be right in two thirds of the frames, the",
            "direction is that of a line through the shape's centres.", ""]
        kept = [f"{found['first frame']:.1f} dB ({found['kept']:.3f}) at {row.partition(', ')[2]}"
                for row, found in figures.items() if "kept" in found]
        if kept:
            lines += ["Image to video starts from the first frame of a drawn clip of the prompt's scene, of any size and place. Mean PSNR of the",
                      f"result's first frame to it (share over 20 dB): {'; '.join(kept)}.", ""]
        lines += [f"Autoencoder, {cases} held-out clips of shapes of all sizes and places: PSNR {recall['psnr']:.1f} dB, spread of the scaled latents "
                  f"{recall['latent spread']:.2f}; of{AT_LARGE[1:]} {large_recall['psnr']:.1f} dB.", "", self.history(), "", *self.curves("cogvideox_loss.png")]
        for stage, kind in KINDS.items():
            if (self.options.output / FILES[stage]).exists():
                lines += ["", f"![held-out prompts, {kind}](cogvideox_{stage}.png)"]
        return lines


def said_of(form: clips.Format) -> str:
    return f"{form.frames} frames of {form.side}x{form.side} at {form.rate}"


def side_by_side(shown: torch.Tensor, path: Path, prompts: list[str] | None = None) -> None:
    """Clips (N, 3, 9, H, W), one a row, as one PNG, their frames side by side."""
    captions = None if prompts is None else [text for prompt in prompts[: len(shown)] for text in [prompt] + [""] * 8]
    contact_sheet(shown.transpose(1, 2).flatten(0, 1), path, columns=shown.shape[2], side=96, captions=captions)


def plan(layout: clips.Layout, count: int, generator: torch.Generator, rng: random.Random):
    """drawn_folders.Plan of the drawn world, in both formats."""
    form = clips.LARGE if rng.random() < LARGE_SHARE else clips.SMALL
    scenes = clips.sample_scenes(count, generator)
    said = [[clips.any_prompt(scene, rng) for _ in range(SENTENCES)] for scene in scenes.tolist()]
    return said, lambda: {drawn_folders.SHOWN: clips.draw(scenes, generator, layout, form=form)}


def files_of(folder: Path, stage: str) -> list[str]:
    """Settings that name the files of a folder of embedded models; the stage's transformer."""
    settings = {"text": "text_encoder", "autoencoder": "autoencoder", stage: "transformer"}
    return [f"model.{name}={folder / FILES[of]}" for of, name in settings.items()]


def load_models(folder: Path, device=torch.device("cpu")):
    """The exported files in fp32: (T5, tokenizer, autoencoder, {stage: transformer} of those that are there)."""
    text, tokenizer = t5.from_file(*read_file(folder / FILES["text"]))
    autoencoder = vae.build()
    autoencoder.load_state_dict(whole(read_file(folder / FILES["autoencoder"])[0]))
    models = {}
    for stage, params in (("transformer", video_transformer.PARAMS), ("image", video_transformer.IMAGE_PARAMS)):
        if (folder / FILES[stage]).exists():
            models[stage] = video_transformer.build(params)
            models[stage].load_state_dict(whole(read_file(folder / FILES[stage])[0]))
            models[stage].eval().to(device)
    return text.to(device), tokenizer, autoencoder.eval().to(device), models
