"""Arguments of run.py app: what is wrong with them shows before anything starts."""

import pytest

from sanacog.commands import app
from sanacog.headless.launcher import LaunchError


@pytest.mark.parametrize("text, wanted", [("ann:secret\n\nbob:a:b\n", [("ann", "secret"), ("bob", "a:b")]), ("", None)])
def test_accounts(text, wanted):
    assert app.accounts_of(None, text) == wanted


@pytest.mark.parametrize("text", ["ann", ":secret", "ann:"])
def test_bad_accounts(tmp_path, text):
    with pytest.raises(LaunchError, match="SANACOG_AUTH has to have lines NAME:PASSWORD"):
        app.accounts_of(None, text)
    file = tmp_path / "accounts"
    file.write_text(text)
    with pytest.raises(LaunchError, match="accounts has to have lines"):
        app.accounts_of(file, "")


def test_a_missing_or_empty_file_opens_nothing(tmp_path):
    with pytest.raises(LaunchError, match="No such file"):
        app.main(["--auth", str(tmp_path / "none")])
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(LaunchError, match="has to have lines"):
        app.accounts_of(tmp_path / "empty", "ann:secret")


def test_a_server_that_is_not_there():
    with pytest.raises(ConnectionError, match="No ComfyUI answers"):
        app.main(["--server", "http://127.0.0.1:9"])
