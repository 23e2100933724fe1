"""python run.py hub: what is published on the Hugging Face Hub, fetching it, and publishing what was trained."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, get_token

from ..headless import installation
from ..hub import catalogue, fetching, publishing
from ..hub.remote import HubError

ROOT = Path(__file__).resolve().parents[1]
EPILOG = """examples:
  python run.py hub list sana sprint                    what there is, its licence and size
  python run.py hub pull cogvideox 1.5 i2v              all that it needs, where the loaders look
  python run.py hub pull gemma                          Sana's text encoder in one file
  python run.py hub pull OWNER/NAME@v1 --only transformer
  python run.py hub push output/train/mine OWNER/mine --tag v1 --private
Gated and private repositories, and push, need a token: hf auth login, or HF_TOKEN=..."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py hub", description="Models from the Hugging Face Hub, and yours to it.",
                                     epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="the released models and what goes with them")
    listing.add_argument("words", nargs="*", help="only those that all words fit: sana 1.6b 1024")

    pull = actions.add_parser("pull", help="fetch a repository's models to where the loaders look")
    pull.add_argument("name", nargs="+", metavar="REPO[@REVISION]", help="OWNER/NAME, or what people call it: cogvideox 1.5 i2v")
    pull.add_argument("--to", type=Path, metavar="FOLDER", help="ComfyUI's folder models; by default that of the ComfyUI in use")
    pull.add_argument("--only", action="append", default=[], choices=tuple(fetching.PARTS),
                      help="this part of a pipeline; may be given more than once")
    pull.add_argument("--file", metavar="PATH", help="one file of a repository that holds several models")
    pull.add_argument("--name", dest="called", help="what it shall be called here; by default as its repository")
    pull.add_argument("--dry-run", action="store_true", help="say what would be fetched, then stop")

    push = actions.add_parser("push", help="publish a LoRA, a ControlNet or a model, with its card")
    push.add_argument("source", type=Path, help="a safetensors file, or the folder of a training run")
    push.add_argument("repository", metavar="OWNER/NAME")
    push.add_argument("--base", help="what it was made of, where the file does not say: a repository, or a name in "
                                     "configs/models")
    push.add_argument("--licence", help="of a base that `hub list` does not have: "
                                        f"{', '.join(catalogue.licences())}, or apache-2.0 ...")
    push.add_argument("--prompt", help="words that call what it learned: a photo of sks dog")
    push.add_argument("--tag", help="a name for this version, such as v1")
    push.add_argument("--message", help="what is new in it")
    push.add_argument("--private", action="store_true", help="make the repository one that only you see")
    push.add_argument("--dry-run", type=Path, metavar="FOLDER", help="write what would be published into a folder, then stop")
    return parser


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        return {"list": show, "pull": pull, "push": push}[options.action](options)
    except (HubError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def show(options) -> int:
    found = catalogue.find(" ".join(options.words)) if options.words else list(catalogue.entries())
    if not found:
        print(f"nothing is called {' '.join(options.words)}. `hub list` without words shows everything.", file=sys.stderr)
        return 1
    print("\n".join(table(found)))
    return 0


def table(found: list[catalogue.Entry]) -> list[str]:
    rows = [("name", "repository", "licence", "size", "what it is")]
    for entry in found:
        licence = catalogue.licences()[entry.licence].metadata if entry.licence else {}
        told = licence.get("license_name") or licence.get("license") or "see there"
        size = f"about {entry.gigabytes:g} GB" if entry.gigabytes else ""
        rows.append((entry.name, entry.repository, told, size, entry.about))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join([*(text.ljust(width) for text, width in zip(row, widths)), row[4]]) for row in rows]
    return lines + ["", "Sizes of models are their transformers' in 16 bits, computed; `hub pull NAME --dry-run` reads the true "
                        "ones."]


def pull(options) -> int:
    words, _, revision = " ".join(options.name).partition("@")
    promised = chosen(words)
    repository = promised.repository if promised else words
    models = options.to or models_folder()
    api = HfApi(token=get_token())
    # Of a name that people say the file is known; who names a repository chooses it.
    known = promised if promised and "/" not in words and not options.file else None
    plan = fetching.plan(api, repository, revision or None, models, options.only, options.file or (known and known.file),
                         options.called or (known and known.called))
    files = fetching.missing(plan)
    print(f"{repository} at {plan.commit[:12]}, to {models}")
    for one in plan.files:
        print(f"  {one.path}  {fetching.size(one.size)}{'' if one in files else '  is there already'}")
    if not files:
        print("Everything is there already.")
        return 0
    fetching.check_space(plan, files)
    print(f"{fetching.size(sum(one.size for one in files))} to fetch.", flush=True)
    if options.dry_run:
        return 0
    for place, contents in fetching.fetch(api, plan, files, promised):
        for warning in contents.warnings:
            print(f"warning: {warning}")
        print(f"{place}: {contents.variant or 'a LoRA in names that only Load LoRA reads: whose, was not checked'}. Choose "
              f"{place.name} in {contents.loader}; workflow {contents.workflow}.")
    return 0


def chosen(words: str) -> catalogue.Entry | None:
    """The catalogue's entry of a name; None of a repository that it does not have. Raises HubError when several may be meant."""
    if "/" in words:
        return next((entry for entry in catalogue.entries() if entry.repository.lower() == words.lower()), None)
    found = catalogue.find(words)
    if not found:
        raise HubError(f"nothing is called {words}. `run.py hub list` shows what is known; any other repository is "
                       "OWNER/NAME.")
    if len(found) > 1:
        told = f"{words} may be one of these; say more of its name, or name the repository:"
        raise HubError("\n".join([told, *table(found)[:-2]]))
    return found[0]


def models_folder() -> Path:
    """Where the ComfyUI in use looks for models: a person's own, else that of `run.py serve`."""
    host = installation.given_host()
    return host / "models" if host else ROOT / "output" / "comfyui" / "models"


def push(options) -> int:
    with tempfile.TemporaryDirectory(prefix="sanacog-hub-") as temporary:
        folder = options.dry_run or Path(temporary)
        about = publishing.prepare(options.source, options.repository, folder, options.base, options.licence, options.prompt)
        print(f"{options.source.name}: {about.contents.variant}; licence "
              f"{about.licence.metadata.get('license_name') or about.licence.metadata['license']}")
        if options.dry_run:
            print(f"{folder} is what would be published as {options.repository}.")
            return 0
        message = options.message or f"{options.tag + ': ' if options.tag else ''}{about.contents.variant}"
        api = HfApi(token=get_token())
        commit = publishing.upload(api, folder, options.repository, message, options.tag, options.private)
    print(f"{api.endpoint}/{options.repository} is at {commit[:12]}{f', tag {options.tag}' if options.tag else ''}.")
    return 0
