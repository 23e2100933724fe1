"""What `run.py app` says to wrong arguments, before anything is started."""

import socket

import pytest

from sanacog.commands import app
from sanacog.headless.launcher import LaunchError


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch):
    monkeypatch.delenv("SANACOG_AUTH", raising=False)
    monkeypatch.setattr(app, "started", lambda: pytest.fail("ComfyUI was started"))


@pytest.mark.parametrize("text, said", [("ann", "line 1"), ("ann:x\n\n:y", "line 3"), ("ann:", "line 1"), ("\n", "empty")])
def test_faults_in_the_file_of_people(tmp_path, text, said):
    file = tmp_path / "people"
    file.write_text(text)
    with pytest.raises(LaunchError, match=said):
        app.main(["--auth", str(file)])


def test_who_may_come_in(tmp_path, monkeypatch):
    file = tmp_path / "people"
    file.write_text("ann: a:b \nbob:x\n")
    assert app.people_of(file) == [("ann", " a:b"), ("bob", "x")]
    assert app.people_of(None) is None
    monkeypatch.setenv("SANACOG_AUTH", "eve:y")
    assert app.people_of(None) == [("eve", "y")]
    with pytest.raises(LaunchError, match="missing cannot be read: No such file"):
        app.people_of(tmp_path / "missing")


def test_faults_in_addresses():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(LaunchError, match="is taken"):
            app.main(["--port", str(taken.getsockname()[1])])
    with pytest.raises(LaunchError, match="1 to 65535"):
        app.main(["--port", "70000"])
    with pytest.raises(LaunchError, match="write the address as"):
        app.main(["--server", "localhost:8188"])


def test_a_server_that_does_not_answer(tmp_path):
    with pytest.raises(LaunchError, match="No ComfyUI answers at http://127.0.0.1:9"):
        app.opened("http://127.0.0.1:9", tmp_path).__enter__()
