"""The process that renders chat templates for `veil.sources.templates`: requests come as lines of JSON, and answers go so.

It is a program of its own, loads nothing of a model, and gives up files, memory beyond some, and dumps of itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

MOST_TEXT = 16 << 20
_MEMORY = 512 << 20
_OPEN_FILES = 16


def main() -> None:
    """Answer until standard input ends."""
    sys.path[0] = str(Path(__file__).parents[2])
    from veil.process import keep_out_of_dumps
    from veil.sources.light_imports import light_imports

    with light_imports():
        from transformers.utils.chat_template_utils import render_jinja_template

    keep_out_of_dumps()
    _give_up()
    answers = sys.stdout
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(render_jinja_template, json.loads(line))), file=answers, flush=True)


def _answer(render: Callable[..., tuple[list[str], object]], request: dict[str, object]) -> dict[str, object]:
    try:
        texts, _ = render(**request)
        if sum(map(len, texts)) > MOST_TEXT:
            return {"kind": "ValueError", "error": f"the text is longer than {MOST_TEXT} characters"}
        return {"texts": texts}
    except Exception as error:
        from jinja2.exceptions import TemplateError

        return {
            "kind": "TemplateError" if isinstance(error, TemplateError) else type(error).__name__,
            "error": str(error)[:400],
        }


def _give_up() -> None:
    """No files to write, few to open, and half a gibibyte more memory than now."""
    try:
        import resource
    except ImportError:  # not POSIX
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    statm = Path("/proc/self/statm")
    if statm.exists():
        most = int(statm.read_text(encoding="utf-8").split()[0]) * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()
