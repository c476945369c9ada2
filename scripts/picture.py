"""Make picture.png, the picture in README.md: the top of the page that inspect_text.py writes about one text.

Needs Chromium (Debian: apt install chromium) and Pillow, which comes with pip install '.[plot]'.
"""

if __name__ == "__main__":
    from npgpt.commands import start  # before the imports that take time: it handles Ctrl-C during them

    start.begin()

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from npgpt.commands import cli
from npgpt.commands.flags import Parser
from npgpt.runtime.errors import NpgptError

SCRIPTS = Path(__file__).parent
PICTURE = SCRIPTS / "picture.png"
PROMPT = ("The learning rate is the size of a step: when it is too large, the loss grows, and when it is too small, "
          "the model learns nothing.")
WIDTH, HEIGHT, SCALE = 960, 812, 1.5  # the window in CSS pixels, and how many real pixels make one of them
LARGEST = 200_000  # bytes


def main():
    Parser(__doc__, []).parse(None)
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise NpgptError("no Chromium found: install it (Debian: apt install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        def command(name, *arguments):
            subprocess.run([sys.executable, SCRIPTS / name, "--model", "tiny", *arguments], cwd=folder, check=True)

        command("finetune.py", "--out", "runs/mine", "--samples", "0", "--quiet")
        command("inspect_text.py", "--adapter", "runs/mine/adapter", "--prompt", PROMPT)
        screen = Path(folder, "screen.png")
        subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                        f"--force-device-scale-factor={SCALE}", f"--window-size={WIDTH},{HEIGHT}",
                        f"--screenshot={screen}", Path(folder, "inside.html").as_uri()],
                       check=True, stderr=subprocess.DEVNULL)
        shrink(screen, PICTURE)
    size = PICTURE.stat().st_size
    print(f"{PICTURE}: {size / 1e3:.0f} kB")
    if size > LARGEST:
        raise NpgptError(f"{PICTURE} is larger than {LARGEST / 1e3:.0f} kB: choose a smaller SCALE or HEIGHT")


def shrink(screen, out):
    """Write the picture `screen` to `out` with 256 colours, which the eye cannot tell from all of them here."""
    from PIL import Image
    Image.open(screen).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    sys.exit(cli.run(main))
