"""The pictures in docs/ of what people see, taken anew of the running product: python run.py screenshots [NAME ...].

`quickstart` is the shipped workflow on ComfyUI's canvas after a run, `app` the page of `run.py app` after four drawings.
Both are in front of one ComfyUI, started for them with an empty base folder, so that only what is shipped is seen.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from ..app import graph
from ..app.tasks import SHAPES
from ..headless import installation, launcher
from ..headless.canvas import Canvas
from ..headless.chromium import chromium
from ..headless.launcher import Server
from . import app

DOCS = installation.ROOT / "docs"
WORKFLOW, SEED = "sana_quickstart", 3
CANVAS = 2400, 1200  # px of the window; the workflow has room in it without being made smaller
PAGE = 1180, 800  # px of the window; the picture is as high as the page
SEEDS = 3, 14, 8, 6  # of the page's examples, the first of which is drawn last and shown large
PATIENCE_MS = 240_000
HAS_PICTURE = "() => (app.graph.nodes ?? app.graph._nodes).some(node => node.imgs?.length)"


def quickstart(browser, server, file):
    """The workflow on the canvas with the picture that it drew."""
    workflow = graph.canvas(WORKFLOW, graph.filled(graph.shipped(WORKFLOW), {"seed": SEED}))
    sampler = next(node for node in workflow["nodes"] if node["type"] == "KSampler")
    sampler["widgets_values"][1] = "fixed"  # else the seed that is seen would be the next run's
    canvas = Canvas(browser, server.url, CANVAS)
    if faults := canvas.open(workflow, WORKFLOW).faults():
        raise RuntimeError("\n".join(faults))
    canvas.run()
    canvas.page.wait_for_function(HAS_PICTURE)  # it is fetched after the run
    canvas.screenshot(file)
    canvas.page.close()


def page(browser, server, file):
    """The tab Sana: Text after a drawing of each example."""
    with tempfile.TemporaryDirectory(prefix="sanacog-page-") as folder:
        app.prepare_gradio(Path(folder))
        with app.opened(server.url, Path(folder)) as blocks:
            try:
                app.show(blocks, launcher.ADDRESS, launcher.free_port())
                visit(browser, blocks.local_url, file)
            finally:
                blocks.close(verbose=False)


def visit(browser, address, file):
    """Draw the examples as a visitor does, and photograph the page."""
    view = browser.new_page(viewport=dict(zip(("width", "height"), PAGE)))
    view.set_default_timeout(PATIENCE_MS)
    view.goto(address)
    settings = view.get_by_role("button", name="Settings").locator("visible=true")
    settings.click()
    view.get_by_label("A new seed each time").locator("visible=true").uncheck()
    for seed, prompt in [*zip(SEEDS, SHAPES)][::-1]:
        view.get_by_label("Prompt", exact=True).locator("visible=true").fill(prompt)
        view.get_by_label("Seed", exact=True).locator("visible=true").fill(str(seed))
        view.keyboard.press("Tab")
        view.click("#draw_sana_text")
        view.locator("#said p").filter(has_text=re.compile(rf"^seed {seed}, .* s$")).wait_for()
    settings.click()
    view.mouse.move(0, 0)  # nothing is to look as if it was pointed at
    view.wait_for_timeout(1000)
    view.screenshot(path=file, full_page=True)
    view.close()


TAKEN = {"quickstart": quickstart, "app": page}


def parser():
    parser = argparse.ArgumentParser(prog="run.py screenshots", description="Take the pictures of the canvas and the page.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these of {', '.join(TAKEN)}")
    parser.add_argument("--output", type=Path, default=DOCS, metavar="DIR", help="folder for the pictures (default: docs/)")
    return parser


def main(arguments):
    """Take them; returns the exit status. Raises SetupError, LaunchError, OSError."""
    options = parser().parse_args(arguments)
    if unknown := set(options.names) - TAKEN.keys():
        print(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(TAKEN)}")
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    # Without previews: they would stay on the canvas, and make the sampler higher than its group.
    with Server(installation.host(), arguments=["--disable-api-nodes"]) as server, chromium() as browser:
        for name in options.names or TAKEN:
            file = options.output / f"{name}.png"
            TAKEN[name](browser, server, file)
            print(f"{file}: {file.stat().st_size} bytes", flush=True)
    return 0
