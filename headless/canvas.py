"""ComfyUI's real frontend in a headless Chromium, driven by Playwright.

`Canvas` does what a person does: open a workflow file, look whether anything on it is red, press Run, look at the
picture. Tests and `run.py screenshots` use it. It works with the frontends 1.32 (ComfyUI 0.3.75) and newer, and uses only
names that the frontend gives to extensions (`app`, `LiteGraph`, `comfyAPI`).
"""

import json
import urllib.parse
import urllib.request
from dataclasses import dataclass

from .launcher import opener

PATIENCE_S = 240  # for anything to happen; a busy machine with two cores needs it

# The frontend ends its start by opening its own default workflow; what is opened before that would be replaced by it.
READY = """() => window.app && app.graph && app.vueAppReady !== false && window.LiteGraph
    && Object.keys(LiteGraph.registered_node_types).length > 200 && (app.graph.nodes ?? app.graph._nodes).length > 0"""

# What the frontend puts over a workflow that it cannot use as it is: dialogs (missing nodes, missing models, a refused
# run; in newer frontends an overlay instead) and toasts (a file that breaks the workflow schema, a failed fetch).
NOTICES = """() => [...document.querySelectorAll('.p-dialog, [role=dialog], .p-toast-message, [data-testid=error-overlay]')]
    .map(element => element.innerText.trim()).filter(Boolean)"""

OPEN = """async ([workflow, name]) => {
    await app.loadGraphData(workflow, true, true, name);
    await new Promise(done => setTimeout(done, 500));       // notices appear a moment after the graph
}"""

LOOK = """() => {
    const nodes = app.graph.nodes ?? app.graph._nodes;
    const types = nodes.map(n => [n.id, n.type, n.title]);
    return {
        nodes: types,
        missing: types.filter(([, type]) => !LiteGraph.registered_node_types[type]).map(([, type]) => type),
        broken: nodes.filter(n => n.has_errors).map(n => n.type),
    };
}"""

LISTEN = """() => {
    window.sanacogRun = {outputs: {}, end: null};
    if (window.sanacogListens) return;
    window.sanacogListens = true;
    const api = comfyAPI.api.api;
    api.addEventListener('executed', e => { window.sanacogRun.outputs[e.detail.node] = e.detail.output; });
    for (const name of ['execution_success', 'execution_error', 'execution_interrupted'])
        api.addEventListener(name, e => { window.sanacogRun.end = {name, detail: e.detail}; });
}"""

# Zoom and pan so that all nodes and groups are in view, clear of the frontend's own bars; gives their rectangle.
FIT = """() => {
    const boxes = (app.graph.nodes ?? app.graph._nodes).map(n => [n.pos[0], n.pos[1] - 30, n.size[0], n.size[1] + 30])
        .concat((app.graph.groups ?? app.graph._groups).map(g => [...g.pos, ...g.size]));
    const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]));
    const right = Math.max(...boxes.map(b => b[0] + b[2])), bottom = Math.max(...boxes.map(b => b[1] + b[3]));
    const width = right - left, height = bottom - top, view = app.canvas.ds;
    const place = app.canvas.canvas.getBoundingClientRect();
    view.scale = Math.min(1, (innerWidth - 140) / width, (innerHeight - 320) / height);
    const x = 90, y = 180;
    view.offset[0] = (x - place.left) / view.scale - left;
    view.offset[1] = (y - place.top) / view.scale - top;
    app.canvas.setDirty(true, true);
    return {x: x - 12, y: y - 12, width: width * view.scale + 24, height: height * view.scale + 24};
}"""


# Nodes 2.0 are elements of the page; without them the canvas knows.
PLACES = """() => {
    const elements = [...document.querySelectorAll('[data-node-id]')].filter(e => e.getBoundingClientRect().height > 0);
    if (elements.length) return Object.fromEntries(elements.map(e => {
        const r = e.getBoundingClientRect();
        return [e.dataset.nodeId, [r.left, r.top, r.right, r.bottom]];
    }));
    return Object.fromEntries((app.graph.nodes ?? app.graph._nodes).map(
        n => [n.id, [n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]]));
}"""


@dataclass
class Opened:
    """What a person sees after a workflow was opened."""

    nodes: list          # [[id, type, title], ...]
    missing: list        # types that this ComfyUI does not know
    broken: list         # types of nodes drawn in red
    notices: list        # texts of the dialogs and toasts over the canvas
    script_errors: list  # uncaught JavaScript errors since the page was opened

    def faults(self) -> list[str]:
        """All that is wrong, one line each; empty for a workflow that opened well."""
        named = {"missing node": self.missing, "node in red": self.broken, "notice": self.notices,
                 "script error": self.script_errors}
        return [f"{what}: {text}" for what, found in named.items() for text in found]


def read(url: str) -> bytes:
    """The body of a GET request."""
    with opener.open(url, timeout=30) as reply:
        return reply.read()


class Canvas:
    """One browser page on the ComfyUI at `url` (http://host:port, no slash at the end), `size` pixels wide and high."""

    def __init__(self, browser, url: str, size: tuple[int, int] = (1600, 900)):
        self.url = url
        # A new server greets with its template browser over the canvas; the first setting says that it was seen.
        settings = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
        request = urllib.request.Request(f"{url}/api/settings", method="POST",
                                         data=json.dumps(settings).encode(),
                                         headers={"Content-Type": "application/json"})
        opener.open(request, timeout=30).close()
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        self.page.set_default_timeout(PATIENCE_S * 1000)
        self.script_errors = []
        self.page.on("pageerror", self._note_script_error)
        self.page.goto(url)
        self.page.wait_for_function(READY)

    def _note_script_error(self, error):
        # Newer frontends ask servers on the internet for news and templates; without a network those calls fail.
        if "Failed to fetch" not in str(error):
            self.script_errors.append(str(error))

    def open(self, workflow: dict, name: str) -> Opened:
        """Open a canvas workflow as the file menu does."""
        self.page.evaluate(OPEN, [workflow, name])
        return Opened(**self.page.evaluate(LOOK), notices=self.page.evaluate(NOTICES),
                      script_errors=list(self.script_errors))

    def to_api(self) -> dict:
        """The open workflow as the HTTP API takes it: {node id: {inputs, class_type, _meta}}."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def serialize(self) -> dict:
        """The open workflow as "Save" writes it."""
        # Through JSON text, as the frontend saves it: properties without a value have to disappear, not become null.
        return json.loads(self.page.evaluate("() => JSON.stringify(app.graph.serialize())"))

    def run(self, timeout_s: float = PATIENCE_S) -> dict:
        """Press Run and wait; returns {node id: output} of the nodes that showed something.

        Raises RuntimeError with the server's message when the run ended in any other way than success.
        """
        self.page.evaluate(LISTEN)
        # queuePrompt's own answer differs between frontends; the events tell what happened.
        self.page.evaluate("""() => { app.queuePrompt(0, 1).catch(
            error => { window.sanacogRun.end = {name: 'refused', detail: String(error)}; }); }""")
        self.page.wait_for_function(
            "() => window.sanacogRun.end || document.querySelector('.p-dialog, [data-testid=error-overlay]')",
            timeout=timeout_s * 1000)
        result = self.page.evaluate("() => window.sanacogRun")
        end = result["end"] or {"name": "refused", "detail": self.page.evaluate(NOTICES)}
        if end["name"] != "execution_success":
            raise RuntimeError(f"{end['name']}: {json.dumps(end['detail'])[:2000]}")
        return result["outputs"]

    def close_notices(self) -> None:
        """Close dialogs and toasts, so that the next workflow is judged by its own."""
        buttons = (".p-dialog-close-button, .p-dialog-header button, .p-toast-close-button, "
                   "[data-testid=error-overlay-dismiss]")
        for _ in range(10):
            if not self.page.evaluate(NOTICES):
                return
            self.page.locator(buttons).last.click()
            self.page.wait_for_timeout(500)
        raise RuntimeError(f"these stay open: {self.page.evaluate(NOTICES)}")

    def files_offered(self) -> str:
        """What the frontend says after opening a workflow whose model files are missing: those it offers to download."""
        see = self.page.locator("[data-testid=error-overlay-see-errors]")
        if not see.count():  # a dialog lists them
            return "\n".join(self.page.evaluate(NOTICES))
        see.click()  # newer frontends list them in a panel
        buttons = self.page.locator("[data-testid=missing-model-download]")
        buttons.first.wait_for()
        return "\n".join(button.get_attribute("aria-label") for button in buttons.all())

    def help_of(self, node_type: str) -> str:
        """The text of the help panel of a node of the open workflow, opened as a person does, by its info button."""
        self.page.evaluate("""type => {
            const node = (app.graph.nodes ?? app.graph._nodes).find(n => n.type === type);
            app.canvas.centerOnNode(node);
            app.canvas.selectNode(node);
        }""", node_type)
        self.page.locator("[data-testid=info-button]").click()
        panel = self.page.locator(".node-help-content")
        panel.locator("h1").wait_for()
        return panel.inner_text()

    def help_pictures(self) -> list:
        """[[address, width in pixels], ...] of the pictures in the open help panel; 0 wide is one that did not load."""
        pictures = "[...document.querySelectorAll('.node-help-content img')]"
        self.page.wait_for_function(f"() => {pictures}.length && {pictures}.every(img => img.complete)")
        return self.page.evaluate(f"() => {pictures}.map(img => [img.getAttribute('src'), img.naturalWidth])")

    def file(self, entry: dict) -> bytes:
        """The file behind one {filename, subfolder, type} of a node's output."""
        return read(f"{self.url}/view?{urllib.parse.urlencode(entry)}")

    def use_nodes_2(self, on: bool) -> bool:
        """Draw nodes as "Nodes 2.0" does, or as ever; returns whether this frontend can."""
        self.page.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", on)
        self.page.wait_for_timeout(500)
        return self.page.evaluate("() => app.extensionManager.setting.get('Comfy.VueNodes.Enabled')") is on

    def places(self) -> dict:
        """{node id: (left, top, right, bottom)} of the open workflow's nodes as they are drawn, in the canvas' units."""
        self.page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.setDirty(true, true); }")
        self.page.wait_for_timeout(1000)
        drawn = self.page.evaluate(PLACES)
        return {int(key): tuple(place) for key, place in drawn.items()}

    def screenshot(self, path) -> None:
        """A picture of the open workflow, all of it, without the frontend's bars."""
        rectangle = self.page.evaluate(FIT)
        self.page.wait_for_timeout(500)
        self.page.screenshot(path=str(path), clip=rectangle)
