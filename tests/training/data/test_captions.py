"""Captioning: a random tiny vision-language model, a stand-in for a server, the journal, spreadsheets."""

import base64
import json
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from sanacog.evaluation import vision_language
from sanacog.evaluation.vision_language import LocalModel, NoAnswer
from sanacog.training.data import captioners, captions
from sanacog.training.data.captioners import Endpoint
from sanacog.training.data.manifest import Row

from ...evaluation import vlm_folder
from . import drawn

PROMPT = "What is it?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return vlm_folder.make(tmp_path_factory.mktemp("models") / "tiny-vlm")


@pytest.fixture(scope="module")
def model(folder):
    return LocalModel(folder, device="cpu", batch_size=4, max_tokens=6)


PICTURES = [[drawn.picture(n, (96, 64))] for n in range(3)]
CLIP = drawn.frames(9, 4)


def test_a_folder_captions_pictures_and_clips(model):
    alone = [captions.caption(model, frames, PROMPT) for frames in [*PICTURES, CLIP]]
    assert all(isinstance(text, str) for text in alone)
    assert "What" not in "".join(alone)  # the question is not repeated
    together = model.captions([*PICTURES, CLIP], PROMPT)
    assert together == alone


def test_what_the_network_sees_depends_on_the_frames(model):
    values = model._inputs([[Image.new("RGB", (56, 56), "white")], [Image.new("RGB", (56, 56), "black")]], [PROMPT] * 2)
    one, two = values["pixel_values"].chunk(2)
    assert (one > two).all()
    assert model._inputs([CLIP], [PROMPT])["video_grid_thw"][0, 0] == 2  # 4 frames, two to a step in time


def test_frames_are_scaled_down():
    assert vision_language.shrunk(Image.new("RGBA", (3000, 1500))).size == (768, 384)


def test_a_batch_that_is_too_large_is_halved(model, monkeypatch):
    expected, sizes, whole = model.captions(PICTURES, PROMPT), [], model.network.generate

    def generate(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(**inputs)

    monkeypatch.setattr(model.network, "generate", generate)
    monkeypatch.setattr(model, "batch_size", 3)
    assert model.captions(PICTURES, PROMPT) == expected
    assert sizes == [3, 1, 1, 1] and model.batch_size == 1

    monkeypatch.setattr(model.network, "generate", lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError("again")))
    with pytest.raises(NoAnswer, match="memory is short for a single row on cpu"):
        model.captions(PICTURES[:1], PROMPT)


def test_other_errors_are_not_taken_for_memory(model, monkeypatch):
    monkeypatch.setattr(model.network, "generate", lambda **_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        model.captions(PICTURES, PROMPT)


def test_a_revision_is_of_the_content(folder, model, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    assert vision_language.revision_of(copy) == model.revision and len(model.revision) == 12
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-400_000] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert vision_language.revision_of(copy) != model.revision


def test_folders_that_are_no_such_models(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        LocalModel(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "cogvlm2", "auto_map": {"AutoConfig": "code.Config"}}))
    (tmp_path / "code.py").write_text("raise SystemExit('code of the folder ran')")
    with pytest.raises(ValueError, match="never run.*OpenAI-style"):
        LocalModel(tmp_path)
    with pytest.raises(ValueError, match="choose one of bf16"):
        LocalModel(tmp_path, dtype="int4")


# --- a server ---


@pytest.fixture
def stand_in():
    """An OpenAI-style server; answers with the colour in the middle of the last picture. `replies` are given first."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.asked.append((self.path, self.headers, body))
                status, headers, text = server.replies.pop(0) if server.replies else (200, {}, None)
            if text is None:
                pictures = [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]
                data = base64.b64decode(pictures[-1].removeprefix("data:image/jpeg;base64,"))
                with Image.open(BytesIO(data)) as image:
                    middle = image.getpixel((image.width // 2, image.height // 2))
                text = json.dumps({"choices": [{"message": {"content": f" a {'red' if middle[0] > 128 else 'blue'} thing\n"}}]})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    lock = threading.Lock()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.replies = [], []
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def plain(colour):
    return Image.new("RGB", (64, 48), colour)


BUSY, REFUSED = (503, {}, "loading"), (400, {}, "no such model: x")


def test_a_server_is_asked_as_it_should_be(stand_in, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    endpoint = Endpoint(stand_in.url + "/", "tiny", max_tokens=9, seed=7)
    assert endpoint.captions([[plain("red")], [plain("blue")], [plain("red"), plain("blue")]], PROMPT) == [
        "a red thing", "a blue thing", "a blue thing"]
    path, headers, body = next(call for call in stand_in.asked if len(call[2]["messages"][0]["content"]) == 3)
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert {name: body[name] for name in ("model", "max_tokens", "temperature", "seed")} == {
        "model": "tiny", "max_tokens": 9, "temperature": 0.0, "seed": 7}
    assert body["messages"][0]["content"][-1] == {
        "type": "text", "text": "These are 2 frames of one clip, in their order. " + PROMPT}
    assert "secret" not in repr(endpoint)


def test_a_server_that_fails_twice_is_asked_again(stand_in, monkeypatch):
    slept = []
    monkeypatch.setattr(captioners.time, "sleep", slept.append)
    stand_in.replies = [BUSY, (429, {"Retry-After": "11"}, "slowly")]
    assert captions.caption(Endpoint(stand_in.url, "tiny", wait=0.25), [plain("red")]) == "a red thing"
    assert slept == [0.25, 11.0] and len(stand_in.asked) == 3


@pytest.mark.parametrize("replies, calls, message", [
    ([REFUSED], 1, "status 400 Bad Request: no such model: x"),
    ([BUSY] * 3, 3, "no answer in 3 tries, the last one: status 503"),
    ([(200, {}, "<html>")], 1, "no answer of an OpenAI-style server: b'<html>'"),
])
def test_a_server_that_does_not_answer(stand_in, replies, calls, message):
    stand_in.replies = list(replies)
    with pytest.raises(NoAnswer, match=message):
        Endpoint(stand_in.url, "tiny", tries=3, wait=0).captions([[plain("red")]], PROMPT)
    assert len(stand_in.asked) == calls


def test_no_server_and_a_slow_one(stand_in):
    gone = f"http://127.0.0.1:{stand_in.server_port}"
    stand_in.shutdown()  # it still listens and accepts, but says nothing
    with pytest.raises(NoAnswer, match="timed out"):
        Endpoint(gone, "tiny", tries=1, timeout=0.2).captions([[plain("red")]], PROMPT)
    stand_in.server_close()
    with pytest.raises(NoAnswer, match="refused"):
        Endpoint(gone, "tiny", tries=1).captions([[plain("red")]], PROMPT)


def test_a_server_wants_a_model():
    with pytest.raises(ValueError, match="give its name"):
        Endpoint("http://127.0.0.1/v1", "")


# --- a data set ---


class Canned:
    model, revision, seed, batch_size = "canned", "1", 0, 2

    def __init__(self, bad=()):
        self.seen, self.bad = [], bad

    def captions(self, rows, prompt):
        self.seen += [frames[0] for frames in rows]
        if wrong := [frames[0] for frames in rows if frames[0] in self.bad]:
            raise NoAnswer(f"cannot {wrong[0]}")
        return [f"text of {frames[0]}" for frames in rows]


def rows_of(count):
    return [Row(file=f"{n}.png", kind="image", sha256=f"{n:064x}") for n in range(count)]


def run(rows, captioner, journal, prompt=PROMPT):
    return captions.caption_rows(rows, lambda row: [row.file], captioner, prompt, journal, log=lambda _: None)


def test_what_is_kept_of_a_caption(tmp_path):
    rows = rows_of(3)
    assert run(rows, Canned(), tmp_path / "journal") == {}
    made = rows[2].caption_auto
    assert {name: made[name] for name in ("text", "model", "revision", "prompt", "seed")} == {
        "text": "text of 2.png", "model": "canned", "revision": "1", "prompt": PROMPT, "seed": 0}
    assert made["time"].endswith("+00:00")


def test_nothing_is_done_twice(tmp_path):
    first, again, other = Canned(), Canned(), Canned()
    run(rows_of(3), first, tmp_path / "journal")
    rows = rows_of(5)
    run(rows, again, tmp_path / "journal")
    assert again.seen == ["3.png", "4.png"]
    assert [row.caption_auto["text"] for row in rows] == [f"text of {n}.png" for n in range(5)]
    rows[0].caption_auto["text"] = "mended"
    run(rows, again, tmp_path / "journal")
    assert rows[0].caption_auto["text"] == "mended"
    run(rows, again, tmp_path / "elsewhere")  # the rows themselves say that they are done
    assert again.seen == ["3.png", "4.png"]
    run(rows, other, tmp_path / "journal", "another prompt")
    assert len(other.seen) == 5


def test_a_row_that_fails_does_not_take_others_with_it(tmp_path):
    rows = rows_of(4)
    failed = run(rows, Canned(bad=["1.png"]), tmp_path / "journal")
    assert failed == {"1.png": "cannot 1.png"}
    assert [bool(row.caption_auto) for row in rows] == [True, False, True, True]


def test_failures_here_and_there_do_not_stop_it(tmp_path):
    bad = [f"{n}.png" for n in range(0, 20, 2)]
    assert list(run(rows_of(20), Canned(bad), tmp_path / "journal")) == bad


def test_when_all_fail_it_stops(tmp_path):
    rows = rows_of(50)
    captioner = Canned(bad=[row.file for row in rows])
    with pytest.raises(NoAnswer, match="5 rows one after the other"):
        run(rows, captioner, tmp_path / "journal")
    assert len(set(captioner.seen)) <= 6


KILLED = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("sanacog_run", sys.argv[1])
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); module.import_pack()
from sanacog.training.data import captions
from sanacog.training.data.manifest import Row
class Slow:
    model, revision, seed, batch_size = "canned", "1", 0, 2
    def captions(self, rows, prompt):
        if rows[0][0] == "6.png":
            print("there", flush=True)
            time.sleep(60)
        return [f"text of {frames[0]}" for frames in rows]
rows = [Row(file=f"{n}.png", kind="image", sha256=f"{n:064x}") for n in range(10)]
captions.caption_rows(rows, lambda row: [row.file], Slow(), "What is it?", Path(sys.argv[2]))
"""


def test_kill_9_loses_nothing_that_was_done(tmp_path):
    script, journal = tmp_path / "killed.py", tmp_path / "journal"
    script.write_text(KILLED)
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen([sys.executable, script, root / "run.py", journal], stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout.readline() == b"there\n"
        process.send_signal(signal.SIGKILL)
    with open(journal, "ab") as file:
        file.write(b'["half a li')  # as when it dies while it writes
    captioner, rows = Canned(), rows_of(10)
    run(rows, captioner, journal)
    assert captioner.seen == ["6.png", "7.png", "8.png", "9.png"]
    assert all(row.caption_auto["text"] == f"text of {row.file}" for row in rows)
    again = Canned()
    run(rows_of(10), again, journal)  # what was written after the half line can be read, too
    assert again.seen == []


# --- by hand ---


def test_captions_go_to_a_spreadsheet_and_back(tmp_path):
    rows = rows_of(4)
    rows[0].captions = ["from, the \"data\"", "second"]
    rows[1].caption_auto = {"text": "automatic"}
    rows[2].caption_manual = "by hand"
    table = tmp_path / "captions.csv"
    captions.export_csv(table, rows)
    text = table.read_text("utf-8-sig")
    assert text.splitlines()[1:] == [
        '0.png,"from, the ""data""",data', "1.png,automatic,automatic", "2.png,by hand,manual", "3.png,,"]
    assert captions.import_csv(table, rows) == 0 and rows[1].caption_manual is None

    table.write_text(text.replace("automatic,", "gr\u00fcn,").replace("by hand", ""), "utf-8-sig")
    assert captions.import_csv(table, rows) == 2
    assert [row.caption_manual for row in rows] == [None, "gr\u00fcn", None, None]

    table.write_text("file;caption\n3.png;a cat, asleep\n", "utf-8")
    assert captions.import_csv(table, rows) == 1 and rows[3].caption_manual == "a cat, asleep"


@pytest.mark.parametrize("text, message", [
    ("file,caption\n0.png,x\n9.png,x\n", r"captions.csv:3: '9.png' is no file of this data set"),
    ("name,caption\n0.png,x\n", r"captions.csv:1: there is no column file, only name, caption"),
    ("", "an empty file"),
])
def test_wrong_spreadsheets_change_nothing(tmp_path, text, message):
    rows, table = rows_of(2), tmp_path / "captions.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        captions.import_csv(table, rows)
    assert rows == rows_of(2)


def test_the_stand_in_and_the_journal_together(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(captioners.time, "sleep", lambda _: None)
    stand_in.replies = [BUSY, REFUSED]
    rows = rows_of(3)
    endpoint = Endpoint(stand_in.url, "tiny", batch_size=1)
    failed = captions.caption_rows(rows, lambda row: [plain("red")], endpoint, PROMPT, tmp_path / "journal", log=lambda _: None)
    assert list(failed) == ["0.png"] and "no such model" in failed["0.png"]
    assert [row.caption_auto and row.caption_auto["text"] for row in rows] == [None, "a red thing", "a red thing"]
