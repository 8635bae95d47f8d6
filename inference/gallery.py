"""The HTML gallery of photos and their captions."""

import base64
import hashlib
import html
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from captioning.cores import core_count
from captioning.errors import shown
from captioning.files import atomic_write
from captioning.images.image_file import ImageError, open_image
from inference.results import Result

THUMBNAIL = 400  # pixels of the longer side
STYLE = """
:root { color-scheme: light dark; --card: #fff; --page: #f2f2ef; --text: #1d1d1b; --soft: #6d6d68; }
@media (prefers-color-scheme: dark) { :root { --card: #242422; --page: #161615; --text: #ecece8; --soft: #9a9a93; } }
body { margin: 0 auto; max-width: 1500px; padding: 2rem; background: var(--page); color: var(--text);
  font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; font-weight: 600; margin: 0; }
header p, small, summary, li { color: var(--soft); }
header { margin-bottom: 1.5rem; }
pre { color: var(--soft); }
input { font: inherit; padding: .45rem .8rem; width: min(24rem, 100%); box-sizing: border-box; border-radius: 8px;
  border: 1px solid color-mix(in srgb, var(--soft) 50%, transparent); background: var(--card); color: inherit; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 1.2rem; }
figure { margin: 0; background: var(--card); border-radius: 12px; overflow: hidden; box-shadow: 0 1px 4px #0003; }
figure[hidden] { display: none; }
img, .none { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: cover; background: #8883; }
figcaption { padding: .8rem 1rem 1rem; }
figcaption p { margin: 0 0 .3rem; }
small, details { font-size: .8rem; overflow-wrap: anywhere; }
ul { margin: .3rem 0 0; padding-inline: 1.1rem; }
"""
SCRIPT = """
const box = document.querySelector("input"), cards = [...document.querySelectorAll("figure")];
box.oninput = () => { const wanted = box.value.toLowerCase();
  for (const card of cards) card.hidden = !card.textContent.toLowerCase().includes(wanted); };
"""


def digest(content: str) -> str:
    """The name of an inline style or script in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


# Names and captions come from strangers. Should one ever be more than text to a browser, the browser still runs and
# loads nothing but the script, the style and the thumbnails of the page.
POLICY = f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src {digest(STYLE)}; "
POLICY += f"script-src {digest(SCRIPT)}"


def write_gallery(path, results: list[Result], title: str, about: str, scores: Iterable[str]) -> None:
    """One HTML file that needs no other: every image as a thumbnail over its captions, and a box to search them.

    about: a line below the title; scores: lines of a table. Images that cannot be read are left grey. The page is to be
    shared: of an image that was given with its whole path it shows the name of the file.
    """
    scores = "\n".join(scores)
    with atomic_write(path) as file, ThreadPoolExecutor(min(8, core_count())) as pool:
        file.write(
            '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{text_of(title)}</title>\n<style>{STYLE}</style>\n"
            f"<header><h1>{text_of(title)}</h1><p>{text_of(about)}</p>"
            + (f"<pre>{html.escape(scores)}</pre>" if scores else "")
            + '<input type="search" placeholder="Search the captions" aria-label="Search"></header>\n<main>\n'
        )
        for start in range(0, len(results), 64):  # not all at once: thumbnails of a large folder fill the memory
            chunk = results[start : start + 64]
            for result, data in zip(chunk, pool.map(thumbnail, [result.path for result in chunk])):
                file.write(_figure(result, data))
        file.write(f"</main>\n<script>{SCRIPT}</script>\n</html>\n")


def text_of(text: str) -> str:
    """`text` as HTML, with what would turn or break the line written out."""
    return html.escape(shown(text))


def _figure(result: Result, data: str | None) -> str:
    caption, log_prob = result.captions[0]
    image = '<div class="none"></div>'
    if data is not None:
        image = f'<img loading="lazy" src="data:image/jpeg;base64,{data}" alt="{text_of(caption)}">'
    more = _folded("Other captions", [f"{text} ({p:.2f})" for text, p in result.captions[1:]])
    more += _folded("What people wrote", result.references)
    name = str(result.image_id)
    name = text_of(os.path.basename(name) if os.path.isabs(name) else name)
    return (
        f'<figure>{image}<figcaption><p dir="auto">{text_of(caption)}</p>'
        f'<small title="natural log-probability">{name} &middot; {log_prob:.2f}</small>{more}</figcaption></figure>\n'
    )


def _folded(title: str, lines: list[str]) -> str:
    items = "".join(f'<li dir="auto">{text_of(line)}</li>' for line in lines)
    return f"<details><summary>{title}</summary><ul>{items}</ul></details>" if lines else ""


def thumbnail(path: str | None) -> str | None:
    """A small JPEG of an image file in base64; None where it cannot be read."""
    if path is None:
        return None
    try:
        image = open_image(path, size_hint=THUMBNAIL)
    except ImageError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return base64.b64encode(out.getvalue()).decode()
