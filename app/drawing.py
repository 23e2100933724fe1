"""One drawing at ComfyUI, told step by step: its place in the queue, previews, what came of it. And a visitor's own results."""

import queue
import re
import tempfile
import threading
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from ..headless.client import Failed, Refused, preview
from .media import Told

HOURS = 6     # the longest that a drawing may take
POLL_S = 0.5  # between looks at the queue


@dataclass
class News:
    """What is shown now. part: of the whole, 0 to 1. picture: a preview's bytes, when there is a new one. files: the results,
    at the end; seconds: that it took."""

    text: str
    part: float = 0.0
    picture: bytes | None = None
    files: tuple = ()
    seconds: float = 0.0


@dataclass
class Visit:
    """One person at the page. running: the id of their prompt. results: [(path, caption, settings)], the newest first."""

    running: str = ""
    results: list = field(default_factory=list)

    def __deepcopy__(self, memo):  # the page makes each visitor one of their own in this way
        return Visit()


def draw(client, visit, workflow, folder, canvas=None):
    """Run a workflow; yields `News`, the last with the files, put into `folder`. Raises Told for whatever keeps it from its end.

    canvas: the workflow as the canvas opens it; the files carry it. Whoever stops asking for news stops the drawing.
    """
    if visit.running:
        raise Told("Something of yours is being drawn already: stop it, or wait.")
    events, ended = queue.SimpleQueue(), []
    visit.running = prompt_id = str(uuid.uuid4())

    def run():
        try:
            extra = {"extra_data": {"extra_pnginfo": {"workflow": canvas}}} if canvas else {}
            ended.append(client.run(workflow, HOURS * 3600, lambda *event: events.put(event), prompt_id=prompt_id, **extra))
        except Exception as error:  # told by the thread that waits for it
            ended.append(error)
        events.put(("over", None))

    threading.Thread(target=run, daemon=True).start()
    try:
        yield News("Sent to ComfyUI.")
        yield from _news(client, prompt_id, events)
    finally:
        visit.running = ""
        if not ended:  # the visitor has gone
            client.interrupt(prompt_id)
    if isinstance(ended[0], Exception):
        raise Told(reason(ended[0])) from ended[0]
    yield News("Done.", 1.0, files=tuple(fetched(client, ended[0], folder)), seconds=ended[0].seconds)


def _news(client, prompt_id, events):
    """News from the events of one prompt, until it is over."""
    begun, now = False, News("Loading the models.")
    while True:
        try:
            kind, data = events.get(timeout=POLL_S)
        except queue.Empty:
            place = None if begun else _place(client, prompt_id)
            if place:
                yield News(f"Waiting: number {place} in the queue.")
            continue
        if kind == "over":
            return
        if kind == "reconnected":
            yield News("The connection to ComfyUI was lost and is back.", now.part)
        elif kind == "executing":
            begun = True
            if now.part == 1.0:
                now = News("Decoding.", 1.0)
            yield now
        elif kind == "progress":
            now = News(f"Step {data['value']} of {data['max']}", data["value"] / max(data["max"], 1))
            yield now
        elif kind == "binary" and (shown := preview(data)):
            yield News(now.text, now.part, shown.image)


def _place(client, prompt_id):
    try:
        return client.position(prompt_id)
    except OSError:
        return None  # the client goes on trying


def fetched(client, result, folder):
    """Paths of what was saved; of a video the MP4 alone, which also comes as an animated picture."""
    entries = [entry for entry in result.files() if entry.get("type") == "output"]
    films = [entry for entry in entries if entry["filename"].endswith(".mp4")]
    for entry in films or entries:
        path = Path(tempfile.mkdtemp(dir=folder)) / re.sub(r"[^A-Za-z0-9._-]", "_", entry["filename"])
        path.write_bytes(client.file(entry))
        yield path


def stop(client, visit):
    """End what a visitor has running or waiting at ComfyUI; returns whether there was something."""
    return bool(visit.running) and client.interrupt(visit.running)


def reason(error):
    """What a person can be told of a failure."""
    if isinstance(error, Failed) and error.result.end == "execution_interrupted":
        return "Stopped."
    if isinstance(error, Failed):
        said = error.result.error.get("exception_message", "").strip() or "ComfyUI gave no reason."
        return re.sub(r"\S*[/\\](?=[^/\\\s]+\.\w+)", "", said)  # a file's folders are no visitor's business
    if isinstance(error, Refused):
        return f"ComfyUI does not take this: {str(error).partition(': ')[2]}"
    if isinstance(error, TimeoutError):
        return f"Not done after {HOURS} hours; ComfyUI goes on with it."
    if isinstance(error, OSError):
        return "ComfyUI does not answer any more. If it has ended, start the page again."
    return f"{type(error).__name__}: {error}"
