"""The wing of CogVideoX: its model, text, autoencoder, conditioning and sampling as ComfyUI knows such things."""
