"""The Dockerfile, the compose file and what is left out of the image, without building it."""

import fnmatch
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

from ..conftest import run
from ..unit.test_layers import ALLOWED, ROOT

DOCKERFILE = ROOT / "docker" / "Dockerfile"
NOT_IN_THE_IMAGE = {"bench"}


def instructions(name):
    """The arguments of each such instruction, with its continued lines in one."""
    lines = DOCKERFILE.read_text("utf-8").replace("\\\n", " ").splitlines()
    return [line.split(None, 1)[1] for line in lines if line.split(None, 1)[:1] == [name]]


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sysconfig.get_path("scripts"), "hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def let_in():
    """The patterns of what .dockerignore lets into the image."""
    lines = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    return [line[1:] for line in lines if line.startswith("!")]


def test_the_image_has_all_rooms_and_no_more():
    rooms = {room.split("/")[0] for room in ALLOWED} - NOT_IN_THE_IMAGE
    patterns = let_in()
    for name in rooms | {"models", "web", "workflows", "configs", "locks", "run.py", "__init__.py", "requirements-host.txt"}:
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), f".dockerignore keeps {name} out"
    for pattern in patterns:
        assert list(ROOT.glob(pattern)), f".dockerignore lets in {pattern}, which is not there"
    for name in (".git", ".venv", ".host", "output", "tests", "bench"):
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def test_setting_up_reads_what_was_copied_before_it():
    """headless/installation.py runs with these files alone."""
    copied = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1] if word != "."]
    assert copied and all(list(ROOT.glob(word)) for word in copied)
    from ..headless.test_requirements import reached
    files, _ = reached([ROOT / "headless" / "installation.py"], False)
    for file in files:
        top = file.relative_to(ROOT).parts[0]
        assert any(fnmatch.fnmatch(top, word) for word in copied), f"{top} is needed and not copied"


def test_what_it_starts_is_a_command_and_has_its_requirements():
    command = yaml.safe_load(instructions("CMD")[-1])
    assert command == ["container", "--here"] and command[0] in run.COMMANDS
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text("utf-8"))
    in_the_image = run.COMMANDS["container"][0]
    for service in compose["services"].values():
        if "command" in service:
            assert set(run.COMMANDS[service["command"][0]][0]) <= set(in_the_image)


def test_compose_has_both_profiles_with_what_they_need():
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text("utf-8"))
    services = compose["services"]
    for profile in ("gpu", "cpu"):
        there = [name for name, service in services.items() if profile in service["profiles"]]
        assert sorted(there) == ["app", f"comfyui-{profile}"]
        assert services[f"comfyui-{profile}"]["networks"]["default"]["aliases"] == ["comfyui"]
    assert services["comfyui-gpu"]["environment"]["SANACOG_REQUIRE_GPU"] == "1"
    assert services["app"]["command"][2:4] == ["--server", "http://comfyui:8188"]
    arguments = {line.split("=")[0] for line in instructions("ARG")}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert (ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DOCKERFILE)
        assert set(service["build"].get("args", {})) <= arguments
    kept = {volume.split(":")[1] for volume in services["comfyui-gpu"]["volumes"]}
    assert kept == set(yaml.safe_load(instructions("VOLUME")[0]))


@pytest.mark.parametrize("instruction, expected", [("USER", "1000:1000"), ("EXPOSE", "8188 7860")])
def test_settings(instruction, expected):
    assert instructions(instruction) == [expected]
