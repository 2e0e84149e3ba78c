"""The report as one HTML page that stands alone: tables, plots and sheets inside it, nothing fetched."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template

__all__ = ["page"]

_BOLD, _ITALIC, _CODE = re.compile(r"\*\*(.+?)\*\*"), re.compile(r"(?<!\*)\*([^*]+)\*(?!\*)"), re.compile(r"`([^`]+)`")


def page(title: str, markdown: str, pictures: Mapping[str, Sequence[tuple[Path, str]]]) -> str:
    """The page: `markdown` with the pictures of each section at its end.

    Parameters
    ----------
    title
        Of the browser's window.
    markdown
        What `pathup.evaluation.tables.markdown` made: headings, paragraphs, lists and tables, no raw HTML.
    pictures
        Section (its second-level heading) to PNG files, each with a caption that says what is seen.
    """
    template = (resources.files("pathup.evaluation") / "report.html").read_text(encoding="utf-8")
    sections = re.split(r"(?m)^(?=## )", markdown)
    body = []
    for section in sections:
        heading = section.partition("\n")[0].removeprefix("## ").strip()
        shown = "".join(_picture(path, caption) for path, caption in pictures.get(heading, ()))
        body.append(f"<section>{_blocks(section)}{shown}</section>")
    return Template(template).substitute(title=html.escape(title), body="\n".join(body))


def _picture(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    alt = html.escape(caption, quote=True)
    image = f'<img src="data:image/png;base64,{data}" alt="{alt}">'
    return f"<figure>{image}<figcaption>{_inline(caption)}</figcaption></figure>"


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = _CODE.sub(r"<code>\1</code>", text)
    return _ITALIC.sub(r"<em>\1</em>", _BOLD.sub(r"<strong>\1</strong>", text))


def _blocks(text: str) -> str:
    """Markdown blocks as HTML; of Markdown, only what the tables module writes."""
    parts = []
    for block in re.split(r"\n{2,}", text.strip()):
        lines = block.split("\n")
        heading = re.match(r"(#+) (.*)", lines[0])
        if heading:
            depth = len(heading[1])
            parts.append(f"<h{depth}>{_inline(heading[2])}</h{depth}>")
        elif lines[0].startswith("|"):
            parts.append(_table(lines))
        elif all(line.startswith("- ") for line in lines):
            parts.append("<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "</ul>")
        else:
            parts.append(f"<p>{_inline(' '.join(lines))}</p>")
    return "\n".join(parts)


def _table(lines: Sequence[str]) -> str:
    def cells(line: str, tag: str) -> str:
        return "".join(f"<{tag}>{_inline(cell.strip())}</{tag}>" for cell in line.strip().strip("|").split(" | "))

    rows = "".join(f"<tr>{cells(line, 'td')}</tr>" for line in lines[2:])
    head = f"<thead><tr>{cells(lines[0], 'th')}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>{rows}</tbody></table></div>'
