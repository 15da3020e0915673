"""What the site does with the pages beyond mkdocs, so that they read the same on a code host."""

from __future__ import annotations

import posixpath
import re

LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:|#|/)([^)\s]+)\)")
FENCE = re.compile(r"^(`{3,}).*?^\1`*\s*?$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LOADED = re.compile(
    r"""<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=["']?(?:https?:)?//[^"'>\s]+"""
)


def links_out(text: str, page: str, repository: str) -> str:
    """Markdown whose links to files beside ``docs/`` lead to the repository.

    Without a repository's address the words of the link stay, and no link.

    Args:
        text: The page.
        page: Its path below ``docs/``.
        repository: The address, or ''.
    """

    def there(match: re.Match) -> str:
        words, target = match.groups()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        if path.startswith("docs/"):
            return match[0]
        if not repository:
            return words
        return f"[{words}]({repository.rstrip('/')}/blob/main/{path})"

    parts, end = [], 0
    for code in FENCE.finditer(text):
        # a link may have code in it; only whole blocks of code are no text
        if code[0].startswith("```"):
            parts += [LINK.sub(there, text[end : code.start()]), code[0]]
            end = code.end()
    return "".join([*parts, LINK.sub(there, text[end:])])


def loaded_from_elsewhere(html: str) -> list[str]:
    """What a page loads from another server when it is opened."""
    return [tag for tag in LOADED.findall(html) if 'rel="canonical"' not in tag]


def on_page_markdown(markdown: str, page, config, **_) -> str:
    """Called by mkdocs with each page."""
    return links_out(markdown, page.file.src_uri, config.repo_url or "")


def on_post_page(output: str, page, **_) -> str:
    """Called by mkdocs with each page as it is written."""
    if found := loaded_from_elsewhere(output):
        from mkdocs.exceptions import PluginError

        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {found[0]}")
    return output
