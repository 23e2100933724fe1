"""Requests that cannot fit, told before anything is allocated."""

from __future__ import annotations

import comfy.model_management as mm


def check_fits(needed: int, device, what: str, advice: str) -> None:
    """Raise ValueError when `needed` bytes are more than the device has in all (on a CPU: than the machine has).

    needed: a lower bound. Whether it fits beside what is loaded, or slowly, is the host's business.
    what: for the message, as in "Sampling 501 latent frames of 60 x 90". advice: what to do.
    """
    there = mm.get_total_memory(device)
    if needed > there:
        raise ValueError(f"{what} needs at least {needed / 2**30:.1f} GiB, {device} has {there / 2**30:.1f} GiB in all. "
                         f"{advice}")


def at_best(device) -> int:
    """Bytes that one call can have: all that a device has, because the host unloads what is in the way and finds another
    way when it still runs out; of a CPU, what is free, because there nothing tells that it runs out."""
    return mm.get_free_memory(device) if mm.is_device_cpu(device) else mm.get_total_memory(device)
