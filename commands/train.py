"""python run.py train CONFIG section.key=value...: trains on people's own pictures and clips, and goes on where it stopped."""

from __future__ import annotations

import argparse
import sys

from . import train_embedded

EPILOG = """CONFIG is a YAML file, a shipped one by name (train/sana_lora; configs/train/ has them all), or a run's own config.yaml.
The same command goes on where a run stopped. Several GPUs: accelerate launch run.py train --here CONFIG ...
tiny-sana, tiny-cogvideox, tiny-sprint, tiny-controlnet, tiny-lora, tiny-sana-video in CONFIG's place train the embedded models anew."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py train", description="Train Sana, SANA-Video or CogVideoX: a LoRA, all weights, or a ControlNet.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="file with the settings")
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help="settings that win over the file's")
    parser.add_argument("--check", action="store_true",
                        help="say what would be done, and what it takes in memory; write the first batch as a picture; then stop")
    parser.add_argument("--print-config", action="store_true", help="show all settings with the source of each, then stop")
    parser.add_argument("--schema", action="store_true",
                        help="for developers: write configs/schema.json and the page's tables anew, then stop")
    return parser


def main(arguments: list[str]) -> int:
    """Train, or answer a question on the settings. 130: stopped by Ctrl-C, and saved."""
    if arguments and arguments[0] in train_embedded.FAMILIES:
        return train_embedded.main(arguments)
    options = parser().parse_args(arguments)
    from ..training import config_files, config_reference

    if options.schema:
        config_reference.write_schema()
        config_reference.write_page()
        print(f"wrote {config_reference.SCHEMA} and {config_reference.PAGE}")
        return 0
    if options.config is None:
        parser().error("name a file with settings, as in: run.py train train/sana_lora model.transformer=FILE data.path=FOLDER")
    try:
        loaded = config_files.load([options.config], options.settings, complete=not options.print_config)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.print_config:
        print(loaded.show(), end="")
        return 0
    return run(loaded, options.check)


def run(loaded, check: bool = False) -> int:
    """The training of settings, or what it would do; errors that people can mend are told in a sentence."""
    import torch

    from ..training import estimate, loop, session

    try:
        if check:
            estimate.check(loaded)
        else:
            session.train(loaded)
    except loop.Stopped:
        print("train: stopped and saved; the same command goes on from here.")
        return 130
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    return 0
