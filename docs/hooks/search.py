"""Order of search results: pages that explain come before references, which have every word somewhere."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

# Factor of the score of a page, by the start of its path; the first that matches.
GUIDES = ("howto/", "quickstart", "embeddings", "decoders", "serving")
BOOSTS = {"reference/": 0.2, "concepts/": 5.0, **dict.fromkeys(GUIDES, 1.5)}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Give a page its factor, as the front matter of Material for MkDocs would."""
    for start, boost in BOOSTS.items():
        if page.file.src_uri.startswith(start):
            page.meta.setdefault("search", {"boost": boost})
            break
    return markdown
