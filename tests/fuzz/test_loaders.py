"""Damaged model files through ComfyUI's loaders: refused by name, or loaded to a model whose first result is one.

What a result that is not finite comes from is told: by the file's name, or in the log when the weights are finite and merely
too large.
"""

import pytest
import torch

from ..host.first_results import MODELS, uses
from .mutations import MUTATIONS, mutated
from .test_files import SECONDS, limit


@pytest.fixture(scope="module")
def loaders(comfyui_path):
    with torch.inference_mode():
        yield uses(comfyui_path)


def finite(result):
    if isinstance(result, torch.Tensor):
        return bool(result.float().isfinite().all())
    parts = result.values() if isinstance(result, dict) else result if isinstance(result, (list, tuple)) else ()
    return all(map(finite, parts))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_damaged_file_is_refused_or_gives_a_result(tmp_path, loaders, caplog, mutation, pytestconfig):
    path, names, faults = tmp_path / "damaged.safetensors", sorted(loaders), []
    for seed in range(96 if pytestconfig.getoption("--slow") else 8):
        name = names[seed % len(names)]
        path.write_bytes(mutated(MODELS / f"{name}.safetensors", mutation, seed))
        load, use = loaders[name]
        caplog.clear()
        try:
            with limit(SECONDS):
                result = use(load(path))
            if not finite(result) and "its weights do not" not in caplog.text:
                faults.append(f"seed {seed} of {name}: NaN, and no word of it")
        except (ValueError, FileNotFoundError) as error:
            if path.name not in str(error):
                faults.append(f"seed {seed} of {name}: {type(error).__name__} does not name the file: {error}")
        except Exception as error:
            faults.append(f"seed {seed} of {name}: {type(error).__name__}: {error}")
    assert not faults, f"{mutation.__name__}:\n" + "\n".join(fault[:400] for fault in faults)
