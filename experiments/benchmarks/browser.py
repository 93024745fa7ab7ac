"""Pages in a real browser, headless Chromium, for measurements and tests."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)


def browse(path: Path, width: int = 1280, dark: bool = False) -> tuple[str, str]:
    """The page's document after its scripts ran, and what the browser logged.

    Raises:
      RuntimeError: Chromium failed.
    """
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += [
        f"--user-data-dir={path.parent / 'profile'}",
        f"--window-size={width},900",
        "--virtual-time-budget=3000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]
    line = [str(CHROMIUM), *options, "--enable-logging=stderr", "--dump-dom", path.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=180)
    if done.returncode != 0:
        raise RuntimeError(f"{CHROMIUM} failed on {path}: {done.stderr}")
    return done.stdout, done.stderr


def probe(path: Path, script: str, width: int = 1280, dark: bool = False) -> dict[str, Any]:
    """What `script`, which may wait, leaves in `seen`, run in the page once it is there; "log" is what the browser
    logged. The page's policy lets `script` run, and nothing else that it did not before.

    Raises:
      RuntimeError: Chromium or the script failed.
    """
    code = f"addEventListener('load', async () => {{ {script}\ndocument.body.dataset.seen = JSON.stringify(seen); }});"
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    source = path.read_text("utf-8").replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    copy = path.with_name("probed.html")
    copy.write_text(source.replace("</body>", f"<script>{code}</script></body>"), "utf-8")
    document, log = browse(copy, width, dark)
    found = re.search(r'data-seen="([^"]*)"', document)
    if found is None:
        raise RuntimeError(f"the script in the page failed: {log}")
    seen: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    return seen | {"log": log}
