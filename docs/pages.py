"""The site's pages that live elsewhere in the repository: README, SECURITY and others, and the notebooks.

MkDocs calls the two functions (`hooks` in mkdocs.yml). Links to files that are no page of the site lose their target.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Files of the root by the page that they are."""

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s:]*)(#[^)]*)?\)")
_IMAGE = re.compile(r"(!\[[^\]]*\]\()docs/")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to MkDocs' list of files."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=linked(_IMAGE.sub(r"\1", text), "")))
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebook(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """A page of docs/ with its links as the site has them."""
    made = page.file.src_uri in PAGES.values() or page.file.src_uri.startswith("notebooks/")
    return markdown if made else linked(markdown, "docs")


def linked(markdown: str, folder: str) -> str:
    """A text of a file in ``folder`` of the repository, with links to the site's pages, or none to what is no page."""

    def replace(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if not target:
            return found[0]
        place = posixpath.normpath(posixpath.join(folder, target))
        if place in PAGES:
            return f"[{text}]({PAGES[place]}{anchor})"
        if place.startswith("docs/") and (ROOT / place).is_file():
            return f"[{text}]({place.removeprefix('docs/')}{anchor})"
        return text if (ROOT / place).exists() else found[0]

    return _LINK.sub(replace, markdown)


def notebook(path: Path) -> str:
    """A notebook as Markdown: its texts, and its code as blocks."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"]).strip()
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + f"\n\nThe notebook is `examples/{path.name}`.\n"
