"""python run.py train: trains the embedded tiny Sana from nothing, resumes, stops in time, and writes models/."""
from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import shutil
from pathlib import Path

import safetensors.torch
import torch

from . import autoencoder, gemma, shapes, transformer
from .loop import Fit, contact_sheet, loss_curve, pick_device
from ..sana_core import checkpoint

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("text", "autoencoder", "decoder", "transformer")
STEPS = {"text": 600, "autoencoder": 3000, "decoder": 3000, "transformer": 10000}  # lengths of the schedules when time allows
SHARE = {"text": 0.05, "autoencoder": 0.2, "decoder": 0.2, "transformer": 0.55}  # of --minutes
PICTURES = 5120  # cached for the transformer
GATE = 0.98  # share of reconstructions in which the judge must find the right one of the main shapes
FILES = {"text": "text_encoders/sanacog_tiny_gemma2.safetensors", "autoencoder": "vae/sanacog_tiny_dcae.safetensors",
         "transformer": "diffusion_models/sanacog_tiny_sana.safetensors"}


def arguments(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py train", description="Train the embedded tiny models on drawn pictures.")
    parser.add_argument("model", choices=["tiny-sana"], help="which family to train")
    parser.add_argument("--stage", choices=[*STAGES, "all", "export"], default="all",
                        help="one stage alone (those before it must be done), all of them, or only write the files")
    parser.add_argument("--minutes", type=float, help="time to spend in all, resumed runs together; the schedules shrink to it")
    parser.add_argument("--steps", type=int, help="length of each stage's schedule in steps, instead of the recipe's")
    parser.add_argument("--stop-at", type=int, help="stop each stage at this step, as if interrupted")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="pictures cached for the transformer")
    parser.add_argument("--cases", type=int, default=64, help="evaluation prompts drawn for the report, 8 to 64")
    parser.add_argument("--note", default="", help="a sentence on this training for models/README.md")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks: pays on a GPU and in long runs")
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs; without it, training goes on where it stopped")
    parser.add_argument("--resume", action="store_true", help="go on where training stopped; this is what happens anyway")
    parser.add_argument("--work", type=Path, default=ROOT / "output" / "train", help="folder of checkpoints, curves and sheets")
    parser.add_argument("--output", type=Path, default=ROOT / "models", help="folder that gets the trained files")
    return parser.parse_args(args)


class Training:
    """The three stages over one working folder."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.work = options, options.work
        self.device = pick_device(options.device)
        if options.fresh and self.work.exists():
            shutil.rmtree(self.work)
        self.work.mkdir(parents=True, exist_ok=True)

    def fit(self, stage: str, make, **settings) -> Fit:
        """A Fit with the stage's freshly made modules, taken up from its checkpoint if there is one."""
        torch.manual_seed(STAGES.index(stage) + 1)
        options = self.options
        modules = make().to(self.device)
        minutes = options.minutes * SHARE[stage] if options.minutes else None
        fit = Fit(stage, modules, modules.loss, steps=options.steps or STEPS[stage], minutes=minutes, folder=self.work, **settings)
        fit.load()
        return fit

    def text(self) -> Fit:
        return self.fit("text", gemma.TextTraining, average=0.98)

    def autoencoder(self) -> Fit:
        return self.fit("autoencoder", autoencoder.Autoencoding, lr=1.5e-3, average=0.995)

    def decoder(self) -> Fit:
        return self.fit("decoder", lambda: autoencoder.Decoding(self.done("autoencoder").modules.model.requires_grad_(True)),
                        lr=1.2e-3, average=0.995)

    def transformer(self) -> Fit:
        return self.fit("transformer", lambda: transformer.Flow(self.cache(), self.device), lr=1.5e-3, average=0.998,
                        split=lambda modules: transformer.matrices(modules.model))

    def done(self, stage: str) -> Fit:
        """A finished, or at least begun, stage with its averaged weights."""
        fit = getattr(self, stage)()
        if fit.step == 0:
            raise SystemExit(f"train: stage '{stage}' has not been trained in {self.work}; run it first.")
        fit.use_average()
        fit.modules.eval().requires_grad_(False)
        return fit

    def cache(self) -> dict[str, torch.Tensor]:
        path = self.work / "cache.safetensors"
        if not path.exists():
            text = self.done("text").modules
            cache = transformer.make_cache(self.done("autoencoder").modules.model, text.model, text.tokenizer,
                                           self.options.pictures, self.device)
            safetensors.torch.save_file(cache, path)
        return safetensors.torch.load_file(path)

    def train(self, stage: str) -> None:
        fit = getattr(self, stage)()
        if self.options.compile and hasattr(fit.modules, "compile_network"):
            fit.modules.compile_network()
        if stage == "transformer" and fit.step == 0:
            figures, _, _ = autoencoder.evaluate_autoencoder(self.done("decoder").modules.model, self.options.cases)
            if figures["main shape"] < GATE:
                print(f"train: the autoencoder keeps the shape in {figures['main shape']:.3f} of pictures, {GATE} is wanted: "
                      f"the transformer cannot do better than that. Train it longer if there is time.")
        fit.run(stop_at=self.options.stop_at)
        self.draw_curve()

    def draw_curve(self) -> None:
        losses = {s: json.loads((self.work / f"{s}.json").read_text()) for s in STAGES if (self.work / f"{s}.json").exists()}
        loss_curve(losses, self.work / "loss.png")

    def export(self) -> None:
        """Write the three files, measure what they can do as they are on disk, and write README.md and the sheets."""
        output = self.options.output
        text, pictures = self.done("text").modules, self.done("decoder").modules.model
        parts = {"text": gemma.to_file(text.model, text.tokenizer_model),
                 "autoencoder": (half(pictures.state_dict()), autoencoder.CONFIG)}
        if (self.work / "transformer.pt").exists():
            sana = self.done("transformer").modules.model
            tensors = checkpoint.from_canonical(sana.state_dict(), "diffusers")
            parts["transformer"] = (half(tensors), transformer.to_config())
        for stage, (tensors, config) in parts.items():
            path = output / FILES[stage]
            path.parent.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(tensors, path, metadata={"format": "pt", "config": json.dumps(config)})
            print(f"train: wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
        if "transformer" in parts:
            self.report()

    def report(self) -> None:
        output = self.options.output
        text, tokenizer, pictures, sana = load_models(output, self.device)
        recall, shown, drawn = autoencoder.evaluate_autoencoder(pictures, 2 * self.options.cases)
        contact_sheet(torch.cat([part for i in range(0, 24, 8) for part in (shown[i : i + 8], drawn[i : i + 8])]), self.work / "autoencoder.png")
        rows = {}
        for instruction in (False, True):
            figures, sheet = transformer.evaluate(sana, pictures, text, tokenizer, instruction=instruction, count=self.options.cases)
            rows["with the instruction" if instruction else "prompt alone"] = figures
            if not instruction:
                contact_sheet(sheet, self.work / "contact_sheet.png", captions=shapes.evaluation_scenes()[1][: len(sheet)])
        factors, bias = autoencoder.preview_factors(pictures)
        (self.work / "preview.json").write_text(json.dumps({"factors": factors.tolist(), "bias": bias.tolist()}))
        figures = {"reconstruction": recall, **rows}
        (self.work / "figures.json").write_text(json.dumps(figures, indent=1))
        steps = {s: len(json.loads((self.work / f"{s}.json").read_text())) for s in STAGES}
        minutes = {s: torch.load(self.work / f"{s}.pt", map_location="cpu", weights_only=True)["elapsed"] / 60 for s in STAGES}
        (output / "README.md").write_text(readme(self.options, figures, steps, minutes, self.device))
        for name in ("contact_sheet.png", "loss.png"):
            if (self.work / name).exists():
                shutil.copy(self.work / name, output / name)
        print(json.dumps(figures, indent=1))


def half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.detach().half().cpu().contiguous() for k, v in tensors.items()}


def load_models(folder: Path, device=torch.device("cpu")):
    """The exported files in fp32: (Gemma, tokenizer, autoencoder, transformer)."""
    def read(stage):
        path = folder / FILES[stage]
        with safetensors.safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, json.loads(file.metadata()["config"])
    text, tokenizer = gemma.from_file(*read("text"))
    pictures, sana = autoencoder.build(), transformer.build()
    pictures.load_state_dict({k: v.float() for k, v in read("autoencoder")[0].items()})
    tensors = checkpoint.to_canonical(read("transformer")[0], "diffusers")
    sana.load_state_dict({k: v.float() for k, v in tensors.items()})
    pictures.to(memory_format=torch.channels_last)
    return text.to(device), tokenizer, pictures.eval().to(device), sana.eval().to(device)


def readme(options: argparse.Namespace, figures: dict, steps: dict, minutes: dict, device) -> str:
    """models/README.md: what the files are, their sums, and what was measured."""
    folder, cases = options.output, options.cases
    names = ["colour", "background", "shape", "size", "place", "colour+background", "colour+background+shape"]
    lines = [
        "# The embedded tiny Sana", "",
        "Three files in ComfyUI's folder names, fp16, with diffusers' (Gemma: Hugging Face's) key names. They have the real",
        "family's architecture and latent geometry (32 channels at 1/32) and know one world: flat shapes on flat backgrounds,",
        "256x256, drawn by `training/shapes.py`. `python run.py train tiny-sana` makes them from nothing.", "",
        "| file | MB | parameters | sha256 |", "|---|---|---|---|"]
    for name in FILES.values():
        data = (folder / name).read_bytes()
        with safetensors.safe_open(folder / name, "pt") as file:
            count = sum(file.get_tensor(k).numel() for k in file.keys() if k != "spiece_model")
        lines.append(f"| {name} | {len(data) / 1e6:.2f} | {count:,} | `{hashlib.sha256(data).hexdigest()}` |")
    lines += ["", f"Measured on {datetime.date.today().isoformat()} on the files as they are here, in fp32 on {device.type.upper()}:", "",
              f"| {cases} held-out prompts, large, Euler, 20 steps, CFG 4.5, seeds 0 to {cases - 1} | " + " | ".join(names) + " |",
              "|" + "---|" * (len(names) + 1)]
    for row in ("prompt alone", "with the instruction"):
        lines.append(f"| {row} | " + " | ".join(f"{figures[row][n]:.3f}" for n in names) + " |")
    recall = figures["reconstruction"]
    lines += ["", "The prompts are `training.shapes.evaluation_scenes()`: colour, shape and background in combinations that no training",
              "picture and no training prompt had, of the four main shapes (cross and star are extras that the models saw less of);",
              "half of them name a place, and place is judged on those alone. (The tokenizer's corpus has sentences of both sides.) `training/judge.py` judges from pixels.", "",
              f"Autoencoder, {2 * cases} held-out pictures of both sizes and all six shapes: PSNR {recall['psnr']:.1f} dB; after reconstruction the",
              f"judge finds the shape in {recall['shape']:.3f} ({recall['main shape']:.3f} of the four main ones), its colour in "
              f"{recall['colour']:.3f}, the background in {recall['background']:.3f}.", "",
              "Training: " + "; ".join(f"{s} {steps[s]} steps, {minutes[s]:.0f} minutes" for s in STAGES) + ". " + options.note, "",
              "![loss](loss.png)", "", "![held-out prompts](contact_sheet.png)", ""]
    return "\n".join(lines)


def main(args: list[str]) -> int:
    """Run the stages asked for, then export. Ctrl-C leaves; the same command goes on from the last checkpoint."""
    options = arguments(args)
    if options.threads:
        torch.set_num_threads(options.threads)
    training = Training(options)
    try:
        for stage in STAGES:
            if options.stage in (stage, "all"):
                training.train(stage)
        if options.stage in ("all", "export"):
            training.export()
    except KeyboardInterrupt:
        print("\ntrain: stopped; the same command goes on from the last checkpoint.")
        return 130
    return 0
