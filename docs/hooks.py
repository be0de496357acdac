"""What the site needs beyond mkdocs.yml: the picture of the results, docstrings as Markdown, nothing from elsewhere."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# The README shows this picture of the results once a run is recorded, and the site shows that section of the README.
PICTURE = Path("results/results.png")

_SPHINX = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)|<p>\.\. code-block:: python</p>\n?")
# The theme fetches the library that draws diagrams from elsewhere where a page has one.
_LOADED = re.compile(r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?(?:https?:)?//[^"'>\s]+|"""
                     r"""<link[^>]*\shref=["']?(?:https?:)?//[^"'>\s]+|class="mermaid\b""")  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the picture, where there is one."""
    if (ROOT / PICTURE).is_file():
        files.append(File.generated(config, PICTURE.as_posix(), abs_src_path=str(ROOT / PICTURE)))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Leave out what docstrings say to Sphinx only."""
    return _SPHINX.sub("", html)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that loads something from another server."""
    if found := _LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from elsewhere: {found[0]}; put it into the site.")
    return output
