"""How the page looks: theme, style sheet, and the line that tells how far a drawing is."""

import html

import gradio as gr

HEAD = '<meta name="viewport" content="width=device-width, initial-scale=1">'
FONTS = ["system-ui", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]  # the visitor's own: nothing is fetched

CSS = """
.gradio-container {max-width: 1240px !important; margin: 0 auto !important; padding: 0 1rem 2rem !important}
#title {padding: 1.4rem 0 .3rem}
#title h1 {font-size: 1.6rem; font-weight: 650; letter-spacing: -.01em; margin: 0}
#title p {color: var(--body-text-color-subdued); margin: .25rem 0 0}
#sheet {gap: 1.6rem; align-items: flex-start}
#result {position: sticky; top: 1rem}
.note p, .hint p {color: var(--body-text-color-subdued); font-size: .92rem; margin: 0}
.state {min-height: 2.6rem}
.state p {margin: 0 0 .35rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere}
.state .bar {height: 4px; border-radius: 2px; background: var(--border-color-primary); overflow: hidden}
.state .bar i {display: block; height: 100%; border-radius: 2px; background: var(--color-accent); transition: width .2s}
.state .trouble {color: var(--error-text-color)}
#picture img {image-rendering: auto; object-fit: contain; width: 100%; height: 100%}
#said {padding: 0 !important}
#drawn, #drawn .grid-wrap {min-height: 0 !important; height: auto !important}
#drawn .grid-container {grid-template-columns: repeat(4, minmax(0, 1fr)) !important}
#drawn .grid-container .thumbnail-item {aspect-ratio: auto; height: auto; padding-bottom: 1.3rem; background: transparent}
#drawn .grid-container .thumbnail-item img {aspect-ratio: 1; height: auto}
#drawn .caption-label {font-size: .64rem; max-width: 100%; left: 0; right: 0; bottom: 0; padding: 1px 3px;
  text-align: center; background: none; border: 0}
footer {display: none !important}
@media (max-width: 900px) {
  #sheet {flex-direction: column; gap: 1rem}
  #sheet > * {width: 100%; min-width: 0 !important}
  #result {position: static}
  .gradio-container {padding: 0 .6rem 2rem !important}
  .tab-container button {padding: .45rem .55rem; font-size: .88rem}
}
"""


def theme():
    return gr.themes.Base(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", radius_size="md", spacing_size="md",
                          font=FONTS, font_mono=["ui-monospace", "monospace"]).set(
        body_background_fill="*neutral_50", body_background_fill_dark="*neutral_950", block_shadow="none",
        block_border_width="1px", button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700", button_primary_text_color="white",
        block_label_background_fill="transparent", block_label_border_width="0px")


def state(text, part=None, trouble=False):
    """The line above the picture. part: 0 to 1, the bar under it; None for none."""
    bar = "" if part is None else f'<div class="bar"><i style="width:{part:.0%}"></i></div>'
    return f'<div class="state" role="status"><p{" class=trouble" if trouble else ""}>{html.escape(text)}</p>{bar}</div>'
