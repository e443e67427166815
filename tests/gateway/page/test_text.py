"""What answers look like, and what goes with a message: Markdown, formulas, code, links, PDFs and texts."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

ANSWER = r"""## Prices

| item | price | kind |
| :--- | ---: | :---: |
| pear | $x^2$ | fruit |

- [x] one
- [ ] two
  1. in **it**

$$\frac{a}{b}$$

```python
def f(x): return "<b>" # text
```

[words](https://example.org/a?b=c) costs $5 and $6.
"""


def test_tables_lists_formulas_code_and_links(writer: Any, bytes_running: Any, script: Any) -> None:
    script(bytes_running, ANSWER)
    writer.tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    writer.ask("Show.").answer()
    writer.find(".katex").first.wait_for()
    cell = writer.find("td").nth(1)
    assert cell.evaluate("(node) => getComputedStyle(node).textAlign") == "right"
    assert cell.locator(".katex-html").count() == 1
    assert writer.find("th").all_inner_texts() == ["item", "price", "kind"]
    assert [box.is_checked() for box in writer.find("li.task > input, li.task > p > input").all()] == [True, False]
    assert writer.find("li.task ol li strong").inner_text() == "it"
    fraction = writer.find(".katex-display .mfrac")
    top, bottom = (fraction.get_by_text(name, exact=True).bounding_box() for name in "ab")
    assert top["y"] < bottom["y"], "KaTeX's own styles are in force under the page's policy"
    assert writer.tab.evaluate("() => document.fonts.check('16px KaTeX_Main')")
    assert writer.find(".code-head > span").first.inner_text() == "python"
    assert writer.find(".hljs-keyword").first.inner_text() == "def"
    writer.button("Copy code").click()
    writer.until("() => document.getElementById('announce').textContent === 'Copied'")
    assert writer.tab.evaluate("() => navigator.clipboard.readText()") == 'def f(x): return "<b>" # text\n'
    with writer.tab.expect_download() as saved:
        writer.button("Save code").click()
    assert saved.value.suggested_filename == "code.py"
    assert Path(saved.value.path()).read_text() == 'def f(x): return "<b>" # text\n'
    writer.find(".table-row").hover()
    writer.button("Copy this table").click()
    writer.until("async () => (await navigator.clipboard.readText()).startsWith('item\\tprice\\tkind\\n')")
    link = writer.find(".text a")
    assert link.inner_text() == "words (example.org)"
    assert writer.find(".text").last.inner_text().endswith("costs $5 and $6.")
    link.click()
    assert "https://example.org/a?b=c" in writer.find("dialog[open]").inner_text(), "it is asked before it is opened"
    writer.confirm("Cancel")


def test_a_button_leads_to_the_end(writer: Any, bytes_running: Any, script: Any) -> None:
    script(bytes_running, "\n\n".join(f"paragraph {n}" for n in range(40)))
    writer.ask("Much.").answer()
    assert not writer.find("#to-end").is_visible()
    writer.tab.evaluate("() => (document.getElementById('scroll').scrollTop = 0)")
    writer.find("#to-end").click()
    writer.find("#to-end").wait_for(state="hidden")
    writer.until(
        "() => { const s = document.getElementById('scroll'); return s.scrollHeight - s.scrollTop - s.clientHeight < 2; }"
    )


MARKUP = {
    "<img src=x onerror=alert(1)> **b**": "<p>&lt;img src=x onerror=alert(1)&gt; <strong>b</strong></p>",
    "[a](javascript:alert(1))": "<p>[a](javascript:alert(1))</p>",
    "![pixel](https://example.org/p.png)": "pixel<span",
    "`a<b`": "<p><code>a&lt;b</code></p>",
    r"\$5 and \\(a\\)": "<p>$5 and \\(a\\)</p>",
    "# T <script>x</script>": "<h1>T &lt;script&gt;x&lt;/script&gt;</h1>",
}


def test_what_a_model_writes_is_never_markup(person: Any) -> None:
    made = person.tab.evaluate(
        "async (sources) => { const { render } = await import('/page/markdown.js');"
        "return sources.map((source) => { const target = document.createElement('div');"
        "render(source, target); return target.innerHTML; }) }",
        list(MARKUP),
    )
    for html, wanted in zip(made, MARKUP.values(), strict=True):
        assert wanted in html
        assert "<img" not in html and "<script" not in html and 'href="javascript' not in html


def test_a_growing_answer_keeps_its_finished_blocks(person: Any) -> None:
    kept = person.tab.evaluate(
        "async () => { const { render } = await import('/page/markdown.js');"
        "const target = document.createElement('div'); render('one\\n\\ntw', target); const first = target.firstChild;"
        "render('one\\n\\ntwo\\n\\nthree', target);"
        "return [target.firstChild === first, target.textContent]; }"
    )
    assert kept == [True, "one\ntwo\nthree\n"]


LATIN = (b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",)
JAPANESE = (
    b"<< /Type /Font /Subtype /Type0 /BaseFont /Ryumin-Light /Encoding /90ms-RKSJ-H /DescendantFonts [6 0 R] >>",
    b"<< /Type /Font /Subtype /CIDFontType0 /BaseFont /Ryumin-Light /FontDescriptor 7 0 R "
    b"/CIDSystemInfo << /Registry (Adobe) /Ordering (Japan1) /Supplement 2 >> >>",
    b"<< /Type /FontDescriptor /FontName /Ryumin-Light /Flags 4 /FontBBox [0 -200 1000 900] /ItalicAngle 0 "
    b"/Ascent 800 /Descent -200 /CapHeight 700 /StemV 80 >>",
)
"""A font that a PDF names without bringing it, in Shift-JIS: what its codes stand for is written in no PDF."""


def pdf(text: str, fonts: tuple[bytes, ...] = LATIN, encoding: str = "ascii") -> bytes:
    """A PDF of one page with a line of text in a font."""
    stream = f"BT /F1 24 Tf 72 720 Td <{text.encode(encoding).hex()}> Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        *fonts,
    ]
    body, places = b"%PDF-1.4\n", []
    for number, data in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, data)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    end = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(body))
    return body + b"xref\n0 %d\n0000000000 65535 f \n" % size + table + end


def test_a_pdf_and_a_text_go_with_a_message(writer: Any, bytes_running: Any, script: Any, tmp_path: Path) -> None:
    (tmp_path / "report.pdf").write_bytes(pdf("The harvest was forty tons."))
    (tmp_path / "note.txt").write_text("Sown in May.\n")
    (tmp_path / "nihon.pdf").write_bytes(pdf("日本の収穫", JAPANESE, "shift-jis"))
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)))
    files = writer.find("#files")
    files.set_input_files([tmp_path / "report.pdf", tmp_path / "note.txt", tmp_path / "nihon.pdf"])
    writer.count("#attached li", 3)
    files.set_input_files([tmp_path / "noise.bin"])
    writer.until("() => document.getElementById('problem-text').textContent === 'noise.bin is neither text nor a PDF.'")
    writer.until("() => /^\\d+ \\/ 1,024 tokens$/.test(document.getElementById('tokens').textContent)")
    files.set_input_files([{"name": "pixel.png", "mimeType": "image/png", "buffer": b"x"}])
    writer.until("() => document.getElementById('problem-text').textContent.includes('cannot see pictures')")
    asked: list[Any] = []
    writer.tab.on("request", lambda request: asked.append(request) if "completions" in request.url else None)
    script(bytes_running, "Forty.")
    assert writer.ask("How much?").answer() == "Forty."
    content = asked[0].post_data_json["messages"][-1]["content"]
    assert content == (
        "report.pdf:\n```\nThe harvest was forty tons.\n```\n\nnote.txt:\n```\nSown in May.\n```\n\n"
        "nihon.pdf:\n```\n日本の収穫\n```\n\nHow much?"
    )
    assert writer.find(".turn.user .attachments .name").all_inner_texts() == ["report.pdf", "note.txt", "nihon.pdf"]
    assert writer.find("#attached li").count() == 0
    writer.reload()
    assert writer.find(".turn.user .attachments .name").count() == 3


def test_a_picture_goes_with_a_message_to_a_model_that_sees(people: Any, seeing: Any, tmp_path: Path) -> None:
    Image.new("RGB", (3000, 1500), "red").save(tmp_path / "roof.png")
    person = people(seeing.url).visit()
    asked: list[Any] = []
    person.tab.on("request", lambda request: asked.append(request) if "completions" in request.url else None)
    person.find("#files").set_input_files([tmp_path / "roof.png"])
    person.count("#attached li", 1)
    person.ask("Colour?").answer()
    picture, text = asked[0].post_data_json["messages"][-1]["content"]
    assert text == {"type": "text", "text": "Colour?"}
    sent = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(sent)).size == (1024, 512), "no larger than models see"
    person.until("() => document.querySelector('.turn.user .thumbnail').width === 96")
    assert person.complaints == []
    person.tab.close()
