"""Which latent a frame of a causal video belongs to."""


def latent_of_frame(T, t):
    """(first, ratio): of T frames the first `first` belong to latent 0 alone, then every latent has `ratio` frames."""
    first = T % 2 if T > 1 else 0
    return first, (T - first) // max(t - first, 1)
