"""A field to paint a mask in: a canvas over a picture, which works by mouse, pen and finger.

Gradio's own editor of pictures needs WebGL, and gives its layers in a size of its own. This one is
a picture with a canvas of the same size over it. Each stroke puts the canvas, as the address of a
PNG, into a text field, whose value Gradio sends.
"""

import base64
import binascii
import io

import numpy as np
from PIL import Image

from vdm_jax.studio.requests import RequestError

MOST_LETTERS = 4_000_000  # of a painted canvas as text
_PREFIX = "data:image/png;base64,"
CSS = """
.paint { position: relative; max-width: 420px; line-height: 0; }
.paint img { width: 100%; image-rendering: pixelated; border-radius: 6px; }
.paint canvas { position: absolute; inset: 0; width: 100%; height: 100%; opacity: .65;
  touch-action: none; cursor: crosshair; }
"""
# For the head of a page.
SCRIPT = """<script>
(() => {
  let pen = null;
  const place = (canvas, event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * canvas.width / box.width,
            (event.clientY - box.top) * canvas.height / box.height];
  };
  const stroke = (canvas, from, to) => {
    const drawing = canvas.getContext("2d");
    drawing.strokeStyle = "#ff3b30";
    drawing.lineCap = "round";
    drawing.lineWidth = canvas.width / 8;
    drawing.beginPath();
    drawing.moveTo(...from);
    drawing.lineTo(to[0] + .01, to[1]);
    drawing.stroke();
  };
  document.addEventListener("pointerdown", event => {
    if (!event.target.matches?.(".paint canvas")) return;
    event.preventDefault();
    pen = {canvas: event.target, from: place(event.target, event)};
    stroke(pen.canvas, pen.from, pen.from);
  });
  document.addEventListener("pointermove", event => {
    if (!pen) return;
    const to = place(pen.canvas, event);
    stroke(pen.canvas, pen.from, to);
    pen.from = to;
  });
  const lift = () => {
    if (!pen) return;
    const field = document.querySelector("#mask textarea");
    field.value = pen.canvas.toDataURL("image/png");
    field.dispatchEvent(new Event("input", {bubbles: true}));
    pen = null;
  };
  document.addEventListener("pointerup", lift);
  document.addEventListener("pointercancel", lift);
})();
</script>"""


def field(picture: np.ndarray) -> str:
    """The HTML of a picture, uint8 `h w 3`, to paint on."""
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "PNG")
    source = _PREFIX + base64.b64encode(encoded.getvalue()).decode()
    height, width = picture.shape[:2]
    return (
        f'<div class="paint"><img src="{source}" alt="the first frame" draggable="false">'
        f'<canvas width="{width}" height="{height}"></canvas></div>'
    )


def painted(text: str) -> np.ndarray:
    """Where the canvas of the text field is painted, bool `h w`. Raises RequestError."""
    if not text.startswith(_PREFIX) or len(text) > MOST_LETTERS:
        raise RequestError("the painted mask is no picture of this page: paint it again")
    try:
        with Image.open(io.BytesIO(base64.b64decode(text.removeprefix(_PREFIX)))) as picture:
            opacity = np.asarray(picture.convert("RGBA"))[..., 3]
    except (OSError, ValueError, binascii.Error, Image.DecompressionBombError) as error:
        raise RequestError(f"the painted mask cannot be read: {error}: paint it again") from error
    return opacity > 0
