"""One drawing at ComfyUI, told step by step: its place in the queue, previews, progress, and what came of it."""

from __future__ import annotations

import queue
import re
import tempfile
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path

from ..headless.client import Failed, Refused, Result, preview

MINUTES = 120  # the longest that a drawing may take
POLL_S = 0.5   # between looks at the queue
_PATH = re.compile(r"(?<![/:\w])(?:[A-Za-z]:\\|/)(?:[^\s:/\\]+[/\\])+")  # the server's folders, which are nobody's business


class Told(Exception):
    """Why nothing was drawn, for the person at the page."""


@dataclass
class News:
    """What is shown now. text: one line. picture: bytes of a preview. files: paths of the results, at the end."""

    text: str
    picture: bytes | None = None
    files: tuple[Path, ...] = ()


class Session:
    """One person's page: what runs for them, and the folder with what came of it."""

    def __init__(self):
        self.prompts, self.folder = set(), None

    def __deepcopy__(self, memo):  # the page makes one for each visitor in this way
        return Session()

    def path(self, name: str) -> Path:
        self.folder = self.folder or Path(tempfile.mkdtemp(prefix="sanacog-page-"))
        return self.folder / f"{uuid.uuid4().hex[:8]}_{re.sub(r'[^A-Za-z0-9._-]', '_', name)}"


def draw(client, session: Session, workflow: dict):
    """Run a workflow; yields `News`, the last with the files. Raises Told for whatever keeps it from ending well."""
    events, ended = queue.SimpleQueue(), []
    prompt_id = str(uuid.uuid4())
    session.prompts.add(prompt_id)

    def run():
        try:
            ended.append(client.run(workflow, MINUTES * 60, lambda kind, data: events.put((kind, data)), prompt_id=prompt_id))
        except Exception as error:
            ended.append(error)
        events.put(("over", None))

    threading.Thread(target=run, daemon=True).start()
    try:
        yield News("Sent.")
        yield from _news(client, prompt_id, events)
    finally:
        session.prompts.discard(prompt_id)
    if isinstance(ended[0], Exception):
        raise Told(reason(ended[0])) from ended[0]
    yield finished(client, session, ended[0])


def _news(client, prompt_id, events):
    begun, total = False, None
    while True:
        try:
            kind, data = events.get(timeout=POLL_S)
        except queue.Empty:
            if not begun and (place := _place(client, prompt_id)):
                yield News(f"Number {place} in the queue.")
            continue
        if kind == "over":
            return
        if kind == "reconnected":
            yield News("The connection was lost and is back.")
        if kind == "executing":
            begun = True
            yield News("Loading." if total is None else "Decoding.")
        if kind == "progress":
            total = data["max"]
            yield News(f"Step {data['value']} of {total}.")
        if kind == "binary" and (shown := preview(data)):
            yield News("", shown.image)


def _place(client, prompt_id):
    try:
        return client.position(prompt_id)
    except OSError:
        return None


def finished(client, session, result: Result) -> News:
    """The files that were saved, fetched; videos as mp4 where there are both."""
    entries = [entry for entry in result.files() if entry.get("type") == "output"]
    if any(entry["filename"].endswith(".mp4") for entry in entries):
        entries = [entry for entry in entries if entry["filename"].endswith(".mp4")]
    paths = []
    for entry in entries:
        paths.append(session.path(entry["filename"]))
        paths[-1].write_bytes(client.file({key: entry[key] for key in ("filename", "subfolder", "type")}))
    return News(f"{result.seconds:.1f} s", files=tuple(paths))


def stop(client, session: Session) -> str:
    """End what runs or waits for this person at ComfyUI; says what was done."""
    stopped = [prompt_id for prompt_id in list(session.prompts) if client.interrupt(prompt_id)]
    return "Stopping." if stopped else "Nothing runs."


def reason(error: Exception) -> str:
    """What a person can be told of a failure, without a traceback."""
    if isinstance(error, Failed):
        if error.result.end == "execution_interrupted":
            return "Stopped."
        return _PATH.sub("", error.result.error.get("exception_message", "ComfyUI gave no reason.").strip())
    if isinstance(error, Refused):
        return f"ComfyUI does not take this: {str(error).partition(': ')[2]}"
    if isinstance(error, TimeoutError):
        return f"It was not done after {MINUTES} minutes; ComfyUI goes on."
    if isinstance(error, OSError):
        return "ComfyUI does not answer any more. If it was stopped, start the page again."
    return f"{type(error).__name__}: {error}"
