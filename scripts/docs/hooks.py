"""Hooks of the documentation site: links into the repository, which the site does not hold, become plain names."""

import re

_OUTSIDE = re.compile(r"\[([^\]\n]+)\]\((?:\.\./)+([^)\s#]+)\)")
_PAGES = {"README.md": "index.md"}


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Replace links to files outside of docs/, except those of a page."""
    depth = page.file.src_uri.count("/")

    def plain(match: re.Match[str]) -> str:
        if match[0].count("../") <= depth:
            return match[0]
        if match[2] in _PAGES:
            return f"[{match[1]}]({'../' * depth}{_PAGES[match[2]]})"
        name = match[1].strip("`")
        return f"`{match[2]}`" if name in match[2] else f"{match[1]} (`{match[2]}`)"

    return _OUTSIDE.sub(plain, markdown)
