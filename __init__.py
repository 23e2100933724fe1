"""SanaCog: Sana and CogVideoX as native model families of ComfyUI.

ComfyUI imports this folder as a custom-node pack and calls `comfy_entrypoint`. Everything that needs ComfyUI is
imported inside it, so that without ComfyUI the folder imports as the plain package `sanacog` (see `run.import_pack`).
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """What ComfyUI asks a pack for: the list of its nodes. Makes the embedded models visible in the loaders."""
    from pathlib import Path

    import folder_paths
    from comfy_api.latest import ComfyExtension

    from .nodes import NODES

    for folder in sorted((Path(__file__).parent / "models").glob("*")):
        if folder.is_dir():
            folder_paths.add_model_folder_path(folder.name, str(folder))

    class SanaCog(ComfyExtension):
        async def get_node_list(self):
            return NODES

    return SanaCog()
