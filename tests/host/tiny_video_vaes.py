"""Wan 2.1's and LTX-2's autoencoders with random weights and few channels, as files that the stock Load VAE reads."""

import json

import torch
from safetensors.torch import save_file

from . import tiny


def save_wan_vae(path):
    from comfy.ldm.wan.vae import WanVAE

    network = tiny.randomise(WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1 + 1, attn_scales=[],
                                    temperal_downsample=[False, True, True], dropout=0.0), seed=5)
    save_file(network.state_dict(), path)
    return path


def save_ltx2_vae(path):
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

    smaller = [["compress_all", {}] for _ in range(3)]
    config = {"_class_name": "CausalVideoAutoencoder", "dims": 3, "in_channels": 3, "out_channels": 3, "latent_channels": 128,
              "encoder_blocks": [["res_x", {"num_layers": 1}], *smaller, ["res_x", {"num_layers": 1}]],
              "decoder_blocks": [["res_x", {"num_layers": 1}], *smaller, ["res_x", {"num_layers": 1}]],
              "norm_layer": "pixel_norm", "patch_size": 4, "latent_log_var": "uniform", "causal_decoder": False,
              "encoder_base_channels": 8, "decoder_base_channels": 8, "spatial_padding_mode": "zeros"}
    network = tiny.randomise(VideoVAE(config=config), seed=6)
    tensors = {key: t.contiguous() for key, t in network.state_dict().items()}
    for key in tensors:  # no parameters, and not made
        if key.startswith("per_channel_statistics."):
            tensors[key] = torch.ones(128) if key.endswith("std-of-means") else torch.zeros(128)
    save_file(tensors, path, metadata={"config": json.dumps({"vae": config})})
    return path
