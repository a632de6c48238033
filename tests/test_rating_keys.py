"""The raters' page's script with what keyboards of other layouts send, run by Node.js."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import rayrlhf.preferences

NODE = shutil.which("node")
SCRIPT = Path(rayrlhf.preferences.__file__).parent / "static" / "rate.js"
PAGE = """
const buttons = ["1", "2", "3", "b", "s", "u", "?"].map((key) => ({
  dataset: { key }, clicked: 0, click() { this.clicked++; }, addEventListener() {} }));
const part = { value: 0, textContent: "", dataset: { left: "30" }, classList: { toggle() {} }, addEventListener() {},
  querySelector: () => part };
let press;
globalThis.setInterval = () => 0;
globalThis.window = { addEventListener() {} };
globalThis.document = {
  querySelector: () => part, querySelectorAll: () => buttons,
  getElementById: () => ({ open: false, addEventListener() {} }),
  addEventListener: (name, listener) => { if (name === "keydown") press = listener; } };
eval(require("fs").readFileSync(process.argv[1], "utf8").replace('"use strict";', ""));
const [key, code] = JSON.parse(process.argv[2]);
press({ key, code, ctrlKey: false, metaKey: false, altKey: false, repeat: false, preventDefault() {} });
console.log(buttons.filter((button) => button.clicked).map((button) => button.dataset.key).join());
"""


@pytest.mark.skipif(NODE is None, reason="no `node` is on the PATH; with one, as by `apt install nodejs`, it is run")
@pytest.mark.parametrize(
    ("key", "code", "pressed"),
    [
        ("1", "Digit1", "1"), ("2", "Numpad2", "2"), ("B", "KeyB", "b"),
        ("&", "Digit1", "1"), ("\u00e9", "Digit2", "2"), ('"', "Digit3", "3"),  # AZERTY without shift
        ("\u0438", "KeyB", "b"), ("\u044b", "KeyS", "s"), ("\u0433", "KeyU", "u"),  # Russian
        ("\u03b2", "KeyB", "b"), ("\u0661", "Digit1", "1"),  # Greek, Arabic
        ("?", "Slash", "?"), ("x", "KeyB", ""), ("Enter", "Enter", ""),  # Dvorak's x lies on B: what it writes counts
    ],
)  # fmt: skip
def test_a_key_of_any_keyboard_presses_its_button(key: str, code: str, pressed: str) -> None:
    done = subprocess.run(
        [str(NODE), "-e", PAGE, str(SCRIPT), json.dumps([key, code])], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == pressed
