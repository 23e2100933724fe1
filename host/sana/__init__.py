"""The wing of Sana: its model, text, autoencoder, ControlNet, guidance and sizes as ComfyUI knows such things."""
