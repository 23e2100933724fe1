"""The pack in a real ComfyUI: it loads, its nodes and models are there, and it costs the start next to nothing."""

import re

NODES = {"SanaCogLoadSanaModel", "SanaCogLoadSanaTextEncoder", "SanaCogLoadDCAE", "SanaCogSanaTextEncode",
         "SanaCogEmptySanaLatent", "SanaCogSanaResolution", "SanaCogFlowDPMSolver"}
EMBEDDED = {"SanaCogLoadSanaModel": "sanacog_tiny_sana.safetensors", "SanaCogLoadDCAE": "sanacog_tiny_dcae.safetensors",
            "SanaCogLoadSanaTextEncoder": "sanacog_tiny_gemma2.safetensors"}


def test_all_nodes_are_there(server):
    assert NODES <= {name for name in server.object_info if name.startswith("SanaCog")}


def test_no_stock_node_was_replaced(server):
    ours = {name for name, node in server.object_info.items() if "SanaCog" in node["python_module"]}
    assert ours and all(name.startswith("SanaCog") for name in ours)


def test_embedded_models_can_be_chosen(server):
    for node, model in EMBEDDED.items():
        (kind, options), *_ = server.object_info[node]["input"]["required"].values()
        assert model in (kind if isinstance(kind, list) else options["options"])


def test_share_of_the_start(server, record_property):
    """ComfyUI lists what importing each pack took; reported, as other work on the machine changes it."""
    seconds, = re.findall(r"([\d.]+) seconds: .*ComfyUI-SanaCog", server.log())
    record_property("import_seconds", float(seconds))
    print(f"importing the pack took {seconds} s of ComfyUI's start (meant to be under 0.3 s)")


def test_expect_error_sees_a_refusal(server):
    said = server.expect_error({"1": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}}})
    assert said


def test_expect_error_sees_a_failure(server):
    loader = {"class_type": "SanaCogLoadSanaModel",
              "inputs": {"model_name": "no_such_file.safetensors", "weight_dtype": "default"}}
    save = {"class_type": "ModelSave", "inputs": {"model": ["1", 0], "filename_prefix": "never"}}
    assert "no_such_file" in server.expect_error({"1": loader, "2": save})
