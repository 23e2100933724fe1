"""What goes over the network: a repository's files, a file that goes on where it stopped, and what the Hub's refusals mean."""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    BadRequestError, GatedRepoError, HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError,
    RevisionNotFoundError)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

SIGN_IN = "`hf auth login`, or HF_TOKEN=..."


class HubError(Exception):
    """Why nothing was fetched or published, in sentences for people."""


@dataclass(frozen=True)
class File:
    """path: in the repository. size: bytes. sha256: of its content, None for small files, which have git's `blob` alone."""

    path: str
    size: int
    sha256: str | None
    blob: str | None


@contextmanager
def explained(api: HfApi, repository: str, revision: str | None = None):
    """Turn what the Hub refuses, and what the network does, into HubError. repository and revision are for the words."""
    try:
        yield
    except GatedRepoError:
        raise HubError(f"{repository} is gated. Open {api.endpoint}/{repository} in a browser, sign in and accept its "
                       f"terms; then run this again with a token of that account ({SIGN_IN}).") from None
    except RevisionNotFoundError:
        raise HubError(f"{repository} has no branch, tag or commit {revision}. Leave @{revision} away for its "
                       "newest.") from None
    except RepositoryNotFoundError as error:
        signed_in = "your token has no right to see it" if api.token else f"it is private and you are not signed in ({SIGN_IN})"
        if error.response.status_code == 401 and api.token:
            raise _refused_token(api) from None
        raise HubError(f"{repository}: there is no such repository at {api.endpoint}, or {signed_in}. `run.py hub list "
                       "WORDS` finds those that this pack knows.") from None
    except HFValidationError:
        raise HubError(f"{repository!r} is no name of a repository: it is OWNER/NAME, of letters, digits, - _ and "
                       "dots.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise _refused_token(api) from None
        if status == 403:
            raise HubError(f"The token has no right to write to {repository}. Make one of the type `write` in your settings "
                           f"on the Hub ({SIGN_IN}), or publish under a name of your own.") from None
        if status in (409, 412):
            raise HubError(f"{repository} was changed by someone else while this ran, and nothing was published. Look at "
                           "what is new there, and run this again.") from None
        said = error.server_message or str(error).splitlines()[0]
        kind = "refused this" if isinstance(error, BadRequestError) or status < 500 else "is in trouble"
        raise HubError(f"{api.endpoint} {kind} ({status}): {said}") from None
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise HubError(f"{api.endpoint} cannot be reached ({error}). What is there already stays; connect, and run this "
                       "again: it goes on where it stopped.") from None


def _refused_token(api) -> HubError:
    if api.token:
        return HubError(f"{api.endpoint} does not know this token. Make a new one in your settings there, and give it by "
                        f"{SIGN_IN}.")
    return HubError(f"{api.endpoint} wants to know who you are: sign in with {SIGN_IN}.")


def files_of(api: HfApi, repository: str, revision: str | None) -> tuple[str, list[File]]:
    """(commit, its files). Raises HubError."""
    with explained(api, repository, revision):
        info = api.model_info(repository, revision=revision, files_metadata=True)
    names = [s.rfilename for s in info.siblings]
    if odd := [name for name in names if ".." in name.split("/") or name.startswith("/") or "\\" in name]:
        raise HubError(f"{repository} has a file {odd[0]!r}, which would lie outside its folder: nothing of it is fetched.")
    return info.sha, [File(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else None, s.blob_id) for s in info.siblings]


def download(api: HfApi, repository: str, commit: str, file: File, folder: Path) -> Path:
    """Fetch a file into folder/its path; one that a former run left half is gone on with. Raises HubError, OSError.

    What arrives is compared with the Hub's own digest of it.
    """
    target = folder / file.path
    if target.is_file() and is_same(target, file):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    with explained(api, repository, commit), open(part, "ab") as out:
        if out.tell() < file.size or not file.size:
            http_get(hf_hub_url(repository, file.path, revision=commit, endpoint=api.endpoint), out, resume_size=out.tell(),
                     headers=build_hf_headers(token=api.token), expected_size=file.size, displayed_filename=file.path)
    if not is_same(part, file):
        part.unlink()
        raise HubError(f"{file.path} of {repository} arrived damaged, and was deleted. Run this again to get it anew.")
    os.replace(part, target)
    return target


def is_same(path: Path, file: File) -> bool:
    """Whether a file here is the one there."""
    if path.stat().st_size != file.size:
        return False
    if not (file.sha256 or file.blob):
        return True
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size)  # git's own, of small files
    with open(path, "rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == (file.sha256 or file.blob)
