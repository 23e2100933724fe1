"""CogVideoX in plain PyTorch: configuration, transformer, causal 3D autoencoder, schedule and checkpoint layouts."""
