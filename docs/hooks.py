"""What the site needs beyond mkdocs.yml: pictures from elsewhere, docstrings as Markdown, nothing from the network."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Where pages show pictures that lie elsewhere; that of the results is there once a run is recorded.
PICTURES = {
    "how-to/images/demo.png": ROOT / "packages/loragen-infer/images/demo.png",
    "results/results.png": ROOT / "results/results.png",
}

_SPHINX = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)|<p>\.\. code-block:: python</p>\n?")
# The theme fetches the library that draws diagrams from elsewhere where a page has one.
_LOADED = re.compile(r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?(?:https?:)?//[^"'>\s]+|"""
                     r"""<link[^>]*\shref=["']?(?:https?:)?//[^"'>\s]+|class="mermaid\b""")  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures that there are."""
    for name, path in PICTURES.items():
        if path.is_file():
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Leave out what docstrings say to Sphinx only."""
    return _SPHINX.sub("", html)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that loads something from another server."""
    if found := _LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from elsewhere: {found[0]}; put it into the site.")
    return output
