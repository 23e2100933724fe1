"""A latent of noise as the noise that a sampling begins with."""

from __future__ import annotations


class LatentNoise:
    """A NOISE of the host: the numbers of a LATENT. latent: what an inversion gave."""

    seed = 0

    def __init__(self, latent: dict):
        self.samples = latent["samples"]

    def generate_noise(self, input_latent: dict):
        """Noise like input_latent's samples (B, C, ...). Raises ValueError unless it has their shape."""
        wanted = tuple(input_latent["samples"].shape)
        if tuple(self.samples.shape) != wanted:
            raise ValueError(f"The noise is of another size ({' x '.join(map(str, self.samples.shape))}) than the latent "
                             f"that is sampled from ({' x '.join(map(str, wanted))}). Connect the latent that was inverted "
                             "to the sampler's latent_image too.")
        return self.samples.clone()
