"""docs/latent_nodes_cogvideox.md against what the ComfyUI at hand does: every row is run."""

import pytest

from sanacog.headless.installation import ROOT

from . import latent_cases, model_cases  # noqa: F401  each registers its own
from .stock_cases import CASES, Bench, NotThere
from .video_model import apart, host, weights  # noqa: F401

PAGE = ROOT / "docs" / "latent_nodes_cogvideox.md"


def table():
    """(versions, {row: what it says for each of them})"""
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in PAGE.read_text("utf-8").splitlines()
             if line.startswith("|")]
    start = next(i for i, cells in enumerate(lines) if cells[0] == "node")
    return lines[start][1:-1], {cells[0]: cells[1:-1] for cells in lines[start + 2:]}


VERSIONS, ROWS = table()


def number(version):
    return tuple(int(part) for part in version.split(".")[:3])


def outcome(result, bench):
    """What a case comes to, in the table's words, and why."""
    try:
        got, wanted, *plain = result(bench)
    except NotThere as error:
        return "not there", str(error)
    except Exception as error:
        return "error", f"{type(error).__name__}: {error}"
    if wanted is not None and got.shape == wanted.shape and apart(got.float(), wanted.float()) < 1e-4:
        return "right", ""
    if plain and got.shape == plain[0].shape and apart(got, plain[0]) < 1e-5:
        return "no effect", ""
    return "wrong", f"{tuple(got.shape)}"


def test_every_row_has_a_case_and_every_case_a_row():
    assert list(ROWS) and set(ROWS) == set(CASES)
    assert all(set(said) <= {"right", "wrong", "error", "no effect", "not there"} for said in ROWS.values())


@pytest.mark.parametrize("row", ROWS)
def test_row(host, weights, row):  # noqa: F811
    """By the column of this version; one between two columns may do as either."""
    from comfyui_version import __version__

    columns = [i for i, version in enumerate(VERSIONS) if number(version) <= number(__version__)]
    said = {ROWS[row][columns[-1]]} | (set() if __version__ in VERSIONS else set(ROWS[row]))
    found, why = outcome(CASES[row], Bench(host=host, weights=weights))
    assert found in said, why
