"""For every kind of model: how ComfyUI's side loads it, and a first result of it."""

from pathlib import Path

import torch

from . import tiny

MODELS = Path(__file__).resolve().parents[2] / "models"


def uses(comfyui_path):
    """{file in MODELS: (path -> what its loader returns, that -> one result)}. To be called in inference mode."""
    tiny.import_host(comfyui_path)
    from sanacog.host import lora
    from sanacog.host.cogvideox import model as cogvideox, text as t5, vae as video_vae
    from sanacog.host.sana import control, model as sana, text as gemma, vae as dcae

    def step(patcher, *shape, context):
        return patcher.model.apply_model(torch.ones(shape), torch.tensor([0.5]), c_crossattn=torch.ones(1, *context),
                                         transformer_options={"wrappers": patcher.wrappers})

    def residuals(net):
        dtype = next(net.control_model.parameters()).dtype  # bf16 where the processor multiplies it; the host gives it that
        x, text = torch.ones(1, 32, 8, 8, dtype=dtype), torch.ones(1, 300, 96, dtype=dtype)
        return net.control_model(x, x, torch.ones(1), text, torch.ones(1), base_block=lambda x, *_, **__: x)

    def states(clip):
        return clip.encode_from_tokens(clip.tokenize("a red circle"))

    model = sana.load_sana(MODELS / "diffusion_models" / "sanacog_tiny_sana.safetensors")
    return {
        "diffusion_models/sanacog_tiny_sana": (sana.load_sana, lambda m: step(m, 1, 32, 8, 8, context=(300, 96))),
        "diffusion_models/sanacog_tiny_cogvideox": (cogvideox.load_cogvideox, lambda m: step(m, 1, 16, 1, 8, 8, context=(226, 96))),
        "controlnet/sanacog_tiny_sana_controlnet": (control.load_sana_controlnet, residuals),
        "vae/sanacog_tiny_dcae": (dcae.load_dcae, lambda vae: vae.decode(torch.ones(1, 32, 2, 2))),
        "vae/sanacog_tiny_cogvideox_vae": (video_vae.load_cogvideox_vae, lambda vae: vae.decode(torch.ones(1, 16, 1, 4, 4))),
        "text_encoders/sanacog_tiny_gemma2": (gemma.load_text_encoder, states),
        "text_encoders/sanacog_tiny_t5": (t5.load_t5, states),
        "loras/sanacog_tiny_sana_outline_lora": (lambda path: lora.apply_lora(path, model), lambda _: None),
    }
