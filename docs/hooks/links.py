"""Links from pages to files outside of docs/: pictures are copied into the site, other files link to the repository.

On GitHub the same links work as they are.
"""

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LOG = logging.getLogger("mkdocs.hooks.links")
_ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(?P<before>\]\()(?P<path>\.\./[^)#\s]+|\.\.)(?P<rest>#[^)\s]*)?(?P<after>\))")
_PICTURES = {".png", ".svg"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures that benchmarks draw."""
    for path in sorted((_ROOT / "benchmarks" / "results").glob("*.png")):
        files.append(File.generated(config, f"images/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the text of a page with its links out of docs/ replaced."""
    folder = posixpath.dirname(page.file.src_uri)

    def replaced(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, match["path"]))
        if path == "docs" or path.startswith("docs/"):
            return match[0]
        if not (_ROOT / path).exists():
            _LOG.warning("%s links to %s, which the repository does not have.", page.file.src_uri, path)
        if posixpath.splitext(path)[1] in _PICTURES:
            target = posixpath.relpath(f"images/{posixpath.basename(path)}", folder or ".")
        else:
            kind = "tree" if (_ROOT / path).is_dir() else "blob"
            target = f"{config.repo_url}/{kind}/main/{path}{match['rest'] or ''}"
        return f"{match['before']}{target}{match['after']}"

    return _LINK.sub(replaced, markdown)
