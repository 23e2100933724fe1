"""Changing a picture or a clip that is there, for both families: from its latent to noise and back, and along an edit."""
