"""A web page in front of a ComfyUI, data from left to right: what can be offered (offers.py), the tabs (tasks.py), what a person
gave (media.py), the shipped workflow filled with it (graph.py), its run (drawing.py), the page (page.py, look.py)."""
