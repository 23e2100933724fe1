"""What a person is told of a run, and of its failure."""

import pytest

from sanacog.app import drawing
from sanacog.app.drawing import News, Session, Told, draw, reason
from sanacog.headless.client import Failed, Forgotten, Refused, Result


class Standing:
    """A client whose prompts go as told: events, then a result or an error."""

    def __init__(self, events=(), end=None, files=(), place=None):
        self.events, self.end, self.files, self.place = events, end, files, place
        self.interrupted = []

    def run(self, workflow, timeout_s, on_event, prompt_id):
        for event in self.events:
            on_event(*event)
        if isinstance(self.end, Exception):
            raise self.end
        return Result(prompt_id, "execution_success", outputs={"9": {"images": list(self.files)}}, seconds=1.5)

    def position(self, prompt_id):
        return self.place

    def interrupt(self, prompt_id):
        self.interrupted.append(prompt_id)
        return True

    def file(self, entry):
        assert set(entry) == {"filename", "subfolder", "type"}
        return entry["filename"].encode()


def entry(name, kind="output"):
    return {"filename": name, "subfolder": "", "type": kind}


def test_news_of_a_run_and_its_files():
    preview = (1).to_bytes(4, "big") + (1).to_bytes(4, "big") + b"jpeg"
    client = Standing([("executing", {"node": "1"}), ("progress", {"value": 1, "max": 2}), ("binary", preview), ("status", {}),
                       ("reconnected", {}), ("executing", {"node": "2"})],
                      files=[entry("a.png"), entry("b.png", "temp"), {**entry("../../c.png"), "format": "x"}])
    session = Session()
    *news, last = draw(client, session, {})
    assert news == [News("Sent."), News("Loading."), News("Step 1 of 2."), News("", b"jpeg"),
                    News("The connection was lost and is back."), News("Decoding.")]
    assert last.text == "1.5 s" and [path.read_bytes() for path in last.files] == [b"a.png", b"../../c.png"]
    assert all(path.parent == session.folder for path in last.files) and not session.prompts


def test_of_a_video_the_mp4_is_shown():
    *_, last = draw(Standing(files=[entry("a.webp"), entry("a.mp4")]), Session(), {})
    assert [path.suffix for path in last.files] == [".mp4"]


def test_stop_ends_what_this_person_runs_and_no_more():
    client, mine, other = Standing(), Session(), Session()
    mine.prompts, other.prompts = {"a", "b"}, {"c"}
    assert drawing.stop(client, mine) == "Stopping." and sorted(client.interrupted) == ["a", "b"]
    assert drawing.stop(client, Session()) == "Nothing runs."


def failed(end="execution_error", **error):
    return Failed(Result("1", end, error=error))


@pytest.mark.parametrize("error, said", [
    (failed("execution_interrupted"), "Stopped."),
    (failed(exception_message="/home/x/models/loras/y.safetensors: of another model\n"), "y.safetensors: of another model"),
    (failed(exception_message=r"C:\ComfyUI\models\y.safetensors: of another model"), "y.safetensors: of another model"),
    (failed(exception_message="see https://huggingface.co/a/b/c and 720 x 480 / 8"), "see https://huggingface.co/a/b/c and 720 x 480 / 8"),
    (Refused(400, {"error": {"message": "Prompt outputs failed validation"}}), "does not take this: Prompt outputs failed"),
    (TimeoutError("no end"), "not done after"), (Forgotten("gone"), "does not answer"), (RuntimeError("x"), "RuntimeError: x")])
def test_reasons_are_for_people(error, said):
    assert said in reason(error) and "/home" not in reason(error)
    with pytest.raises(Told):
        list(draw(Standing(end=error), Session(), {}))
