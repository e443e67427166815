"""The page's files: libraries of others with their licences, and how they are served."""

from __future__ import annotations

import re
from typing import Any

import httpx

from veil.gateway import page

FOLDER = page._FOLDER


def test_every_library_is_listed_and_has_its_licence() -> None:
    vendor = FOLDER / "vendor"
    listed = (vendor / "README.md").read_text()
    files = {path.name for path in vendor.iterdir() if path.is_file()} - {"README.md"}
    assert files == set(re.findall(r"`([\w.-]+\.(?:m?js|css))`", listed))
    licences = {path.stem for path in (vendor / "licenses").iterdir()}
    assert licences == {
        *("dompurify", "entities", "highlight", "katex", "linkify-it", "markdown-it", "mdurl", "pdfjs-dist", "punycode"),
        "uc.micro",
    }
    for name, version in re.findall(r"\| ([@\w/-]+)[^|]*\| (\d+\.\d+\.\d+) \|", listed):
        assert any(version in (vendor / file).read_text() for file in files), f"{name} {version} is not what lies here"


def test_modules_import_only_what_is_there() -> None:
    for path in FOLDER.glob("*.js"):
        for name in re.findall(r"""(?:from|import\() ?"(/page/[^"]+)\"""", path.read_text()):
            assert (FOLDER / name.removeprefix("/page/")).is_file(), f"{path.name} imports {name}"
        assert len(path.read_text().splitlines()) < 300


def test_parts_are_served_strictly_and_not_sent_twice(running: Any) -> None:
    first = httpx.get(f"{running.url}/page/vendor/fonts/KaTeX_Main-Regular.woff2")
    assert first.headers["content-type"] == "font/woff2"
    policy = first.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    again = httpx.get(str(first.url), headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for name in ("nothing.js", "__init__.py", "vendor/README.md", "../app.py", "%2e%2e/app.py"):
        assert httpx.get(f"{running.url}/page/{name}").status_code == 404
