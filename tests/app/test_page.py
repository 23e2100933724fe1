"""The page in a real browser and over its API, in front of the real ComfyUI with the embedded models."""

import io
import json
import threading
import time

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from sanacog.app.tabs import TABS
from sanacog.headless.launcher import ROOT

INPUT = ROOT / "workflows" / "input"
SECONDS = 60


class Page:
    """One tab of the page, as a person uses it."""

    def __init__(self, browser, address, width=1180):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(SECONDS * 1000)
        self.page.goto(address)
        self.page.wait_for_selector("#sana_text_go")

    def open(self, tab):
        self.name = tab.name
        name = self.page.get_by_role("tab", name=tab.title, exact=True)
        if not name.is_visible():
            self.page.locator("button.overflow-menu, .overflow-menu button").first.click()
            name = self.page.get_by_text(tab.title, exact=True)
        name.first.click()
        self.page.wait_for_selector(f"#{tab.name}_go", state="visible")

    def settings(self, **values):
        tab = self.page.locator(f"#{self.name}")
        if not tab.get_by_label("Steps").first.is_visible():
            tab.get_by_text("Settings", exact=True).click()
        for label, value in values.items():
            field = tab.locator("input[type=number]").nth(("steps", "guidance").index(label))
            field.fill(str(value))
            field.press("Tab")

    def draw(self):
        self.page.click(f"#{self.name}_go")

    def said(self):
        return self.page.inner_text(f"#{self.name}_said")

    def wait_for(self, start):
        self.page.wait_for_function("([id, start]) => document.getElementById(id).innerText.trim().startsWith(start)",
                                    arg=[f"{self.name}_said", start])

    def address_of_picture(self):
        return self.page.evaluate("id => (document.querySelector(`#${id} img`) || {}).src || ''", f"{self.name}_picture")

    def shown(self):
        """The pixels of the picture, float (H, W, 3), and the file's text."""
        address = self.address_of_picture()
        picture = Image.open(io.BytesIO(self.page.request.get(address).body()))
        return np.array(picture.convert("RGB")) / 255.0, picture.info


@pytest.fixture(scope="module")
def page(browser, address):
    page = Page(browser, address)
    yield page
    page.page.close()


def tab(name):
    return next(tab for tab in TABS if tab.name == name)


def test_text_draws_with_moving_previews_and_its_workflow(page):
    page.open(tab("sana_text"))
    page.settings(steps=8)
    page.draw()
    previews = set()
    while not page.said().startswith("Seed"):
        assert "Error" not in page.said()
        previews.add(page.address_of_picture())
        time.sleep(0.02)
    page.wait_for("Seed")
    page.page.wait_for_function("document.querySelector('#sana_text_drawn img') !== null")
    assert len(previews - {""}) >= 3
    pixels, info = page.shown()
    assert pixels.shape == (256, 256, 3) and pixels[128, 128, 0] > 0.6 > pixels[4, 128, 0]  # red on blue
    graph = json.loads(info["prompt"])
    assert next(node["inputs"]["steps"] for node in graph.values() if node["class_type"] == "KSampler") == 8


def test_stop_interrupts_at_comfyui(page, server):
    page.open(tab("sana_text"))
    page.settings(steps=100)
    page.draw()
    page.wait_for("Step")
    page.page.click("#sana_text_stop")
    page.wait_for("Stopped.")
    ends = [entry["status"]["messages"][-1][0] for entry in server.get("/history").values()
            if any(node["inputs"].get("steps") == 100 for node in entry["prompt"][2].values())]
    assert ends == ["execution_interrupted"]
    server.assert_answers()


def test_sprint_draws_while_one_types(page):
    page.open(tab("sana_sprint"))
    box = page.page.locator("#sana_sprint textarea").first
    box.fill("a large blue square on a white backgroun")
    box.press_sequentially("d")
    page.wait_for("Seed")
    pixels, _ = page.shown()
    assert pixels[4, 4].min() > 0.7 and pixels[128, 128, 2] > 0.5 > pixels[128, 128, 0]


def test_inpaint_by_painting(page):
    page.open(tab("sana_inpaint"))
    page.draw()
    page.wait_for("Give a picture")
    page.page.locator("#sana_inpaint_source input[type=file]").first.set_input_files(INPUT / "sanacog_circle.png")
    canvas = page.page.locator("#sana_inpaint_source canvas").first
    canvas.wait_for()
    time.sleep(1.0)
    page.page.locator("#sana_inpaint_source button[title='Brush']").first.click()
    time.sleep(0.5)
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.page.mouse.move(*middle)
    page.page.mouse.down()
    page.page.mouse.move(middle[0] + 30, middle[1] + 20, steps=8)
    page.page.mouse.up()
    page.settings(steps=3)
    page.draw()
    page.wait_for("Seed")
    pixels, _ = page.shown()
    source = np.array(Image.open(INPUT / "sanacog_circle.png").convert("RGB").resize((256, 256))) / 255.0
    assert np.abs(pixels - source)[:20].max() < 0.02  # outside the paint nothing changed
    assert np.abs(pixels - source).max() > 0.1


def test_a_phone(browser, address):
    phone = Page(browser, address, width=390)
    phone.page.wait_for_function("document.documentElement.scrollWidth <= 390")  # tabs that do not fit go into a menu
    box = phone.page.locator("#sana_text_go").bounding_box()
    assert box["y"] + box["height"] < 900 and box["width"] > 150
    phone.page.close()


def settings(name, prompt, given=None, **changes):
    """Arguments of the page's API, in its order."""
    usual = dict(prompt=prompt, negative="", model=None, steps=2, guidance=3.0, seed=5, anew=False, aspect="1:1", strength=0.8,
                 lora="none", lora_strength=1.0)
    values = {**usual, **changes}
    if given is not None:
        values["source"] = given
    return list(values.values())


MODELS = {"sana_text": "sanacog_tiny_sana", "sana_image": "sanacog_tiny_sana", "sana_sketch": "sanacog_tiny_sana",
          "sana_sprint": "sanacog_tiny_sana_sprint", "video_text": "sanacog_tiny_cogvideox", "video_image": "sanacog_tiny_cogvideox_i2v",
          "video_video": "sanacog_tiny_cogvideox"}


def given_for(name):
    picture = handle_file(str(INPUT / "sanacog_circle.png"))
    return {"sana_image": picture, "sana_sketch": {"background": None, "layers": [], "composite": picture},
            "video_image": handle_file(str(INPUT / "sanacog_first_frame.png")),
            "video_video": handle_file(str(INPUT / "sanacog_moving_square.mp4"))}.get(name)


@pytest.fixture(scope="module")
def visitor(address):
    return Client(address, verbose=False)


@pytest.mark.parametrize("name", MODELS)
def test_each_tab_draws_over_the_api(visitor, name):
    arguments = settings(name, tab(name).example, given_for(name), model=f"{MODELS[name]}.safetensors")
    said, picture, clip, files, *_ = visitor.predict(*arguments, api_name=f"/{name}")
    assert said.startswith("Seed 5, 2 steps"), said
    made = value_of(files)
    assert len(made) == 1 and made[0].endswith(".mp4" if tab(name).video else ".png")


def value_of(update):
    return update["value"] if isinstance(update, dict) and "value" in update else update


def test_bad_input_is_said_and_draws_nothing(visitor):
    model = "sanacog_tiny_sana.safetensors"
    found, picture, *_ = visitor.predict(*settings("sana_text", "  ", model=model), api_name="/sana_text")
    assert found == "Say what to draw." and picture == {"__type__": "update"}  # it stays as it was
    with pytest.raises(AppError, match="less than minimum value 1"):
        visitor.predict(*settings("sana_text", "a red circle", model=model, steps=0), api_name="/sana_text")


def test_two_people_are_served_in_turn_and_do_not_see_each_other(address):
    found, visitors = {}, [Client(address, verbose=False) for _ in range(2)]

    def draw(i):
        arguments = settings("sana_text", "a large red circle on a blue background", model="sanacog_tiny_sana.safetensors", seed=50 + i)
        found[i] = visitors[i].predict(*arguments, api_name="/sana_text")
    threads = [threading.Thread(target=draw, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        assert found[i][0].startswith(f"Seed {50 + i}")
        assert len(value_of(found[i][4])) == 1  # the gallery has one's own picture alone
