"""Whether a file holds exactly the tensors of a model."""

from __future__ import annotations

import torch


def check_state_dict(shapes: dict[str, tuple], to_canonical, network, variant: str, filename: str = "") -> None:
    """Raise ValueError, naming the keys, unless a file's tensors are those of `network`. Nothing is allocated.

    shapes: {key: shape} of the file in its own layout. to_canonical: {key: tensor} -> the same under the network's
    names, by views and stacks alone; its ValueError goes on with the file's name before it. network: makes the module, on
    the meta device. variant, filename: for the message.
    """
    where = f"{filename}: " if filename else ""
    try:
        found = to_canonical({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    except ValueError as error:
        raise ValueError(where + str(error)) from None
    try:
        expected, problems = network().state_dict(), []
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ValueError(f"{where}a damaged {variant}: its sizes make no network ({error}). Get the file again.") from None
    if missing := expected.keys() - found.keys():
        problems.append("missing " + some(missing))
    if extra := found.keys() - expected.keys():
        problems.append("unexpected " + some(extra))
    if wrong := [f"{key} {tuple(found[key].shape)}, expected {tuple(t.shape)}"
                 for key, t in expected.items() if key in found and found[key].shape != t.shape]:
        problems.append("of another shape " + some(wrong))
    if problems:
        raise ValueError(f"{where}not a whole {variant}: {'; '.join(problems)}. The file is incomplete or altered: get it "
                         f"again.")


def refuse_hollow(shapes: dict[str, tuple], what: str, where: str = "") -> None:
    """Raise ValueError for weights and biases without dimensions or numbers, before anyone divides by a width of 0.

    what: words for the model. where: goes before the message.
    """
    if hollow := [key for key, shape in shapes.items() if key.endswith((".weight", ".bias")) and (not shape or 0 in shape)]:
        raise ValueError(f"{where}a damaged {what}: no numbers in {some(hollow)}. Get the file again.")


def some(keys, most: int = 6) -> str:
    """The first `most` of `keys` in order, and how many more there are."""
    keys = sorted(keys)
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
