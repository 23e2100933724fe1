"""python run.py hub as people start it, against a stand-in for the Hub; and where it looks for ComfyUI's models."""

import os
import subprocess
import sys

import pytest

from sanacog.commands import hub as command
from sanacog.headless import installation

from ..hub.running import LORA, ROOT, run
from ..hub.stand_in import StandIn


def test_from_a_file_to_the_hub_and_back(tmp_path):
    with StandIn() as server:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING")) and
                       not key.lower().endswith("_proxy")}
        environment |= {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"),
                        "HF_TOKEN": server.token, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

        def start(*arguments):
            return subprocess.run([sys.executable, str(ROOT / "run.py"), "hub", "--here", *map(str, arguments)], cwd=tmp_path,
                                  env=environment, capture_output=True, text=True)

        pushed = start("push", LORA, "me/outline", "--licence", "apache-2.0", "--tag", "v1")
        assert pushed.returncode == 0 and f"{server.url}/me/outline is at " in pushed.stdout, pushed.stderr
        pulled = start("pull", "me/outline@v1", "--to", tmp_path / "models")
        assert pulled.returncode == 0, pulled.stderr
        place = tmp_path / "models" / "loras" / "outline.safetensors"
        assert f"{place}: Sana, 6 layers of width 128, 256px. Choose outline.safetensors in Load LoRA" in pulled.stdout
        missing = start("pull", "me/nothing")
        assert missing.returncode == 1 and "there is no such repository" in missing.stderr and "Traceback" not in missing.stderr
        assert server.unknown == []


def test_list():
    status, printed, _ = run("list", "cogvideox", "1.5", "i2v")
    assert status == 0 and printed.splitlines()[1].split() == (
        "CogVideoX 1.5 5B I2V THUDM/CogVideoX1.5-5B-I2V cogvideox-license about 11.14 GB image to video, 1360 x 768, 81 frames").split()
    assert len(run("list")[1].splitlines()) > 50
    status, printed, told = run("list", "nothing", "of", "mine")
    assert status == 1 and printed == "" and "nothing is called nothing of mine" in told


def test_a_name_of_several_is_not_guessed(tmp_path):
    status, printed, told = run("pull", "sana", "sprint", "--to", tmp_path)
    assert status == 1 and "may be one of these" in told and "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers" in told
    status, _, told = run("pull", "of", "mine", "--to", tmp_path)
    assert status == 1 and "nothing is called of mine" in told


def test_models_go_to_the_comfyui_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr(installation, "given_host", lambda: tmp_path)
    assert command.models_folder() == tmp_path / "models"
    monkeypatch.setattr(installation, "given_host", lambda: None)
    assert command.models_folder() == ROOT / "output" / "comfyui" / "models"  # where `run.py serve` has them


@pytest.mark.parametrize("arguments", [(), ("pull",), ("push", "x"), ("pull", "x", "--only", "lora")])
def test_mistyped(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(list(arguments))
    assert stopped.value.code == 2 and "usage: run.py hub" in capsys.readouterr().err


def test_a_file_that_is_not_there(tmp_path):
    status, _, told = run("push", tmp_path / "no.safetensors", "me/x")
    assert status == 1 and "no.safetensors: there is no such file or folder" in told
