"""A web page in front of a ComfyUI: what there is to offer (offers.py), a shipped workflow filled with what a person chose
(graph.py), its run with previews (drawing.py), and the page (page.py)."""
