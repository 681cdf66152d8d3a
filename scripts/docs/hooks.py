"""Hooks of the documentation site: links into the repository become its pages, or plain names of what it does not hold."""

import re

_OUTSIDE = re.compile(r"\[([^\]\n]+)\]\((?:\.\./)+([^)\s#]+)\)")
_PAGES = {
    r"README\.md": "index.md",
    r"benchmarks/results/?": "results/index.md",
    r"benchmarks/results/([\w-]+)\.json": r"results/\1.md",
}


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Replace links to files outside of docs/."""
    depth = page.file.src_uri.count("/")

    def plain(match: re.Match[str]) -> str:
        if match[0].count("../") <= depth:
            return match[0]
        for pattern, target in _PAGES.items():
            if found := re.fullmatch(pattern, match[2]):
                return f"[{match[1]}]({'../' * depth}{found.expand(target)})"
        name = match[1].strip("`")
        return f"`{match[2]}`" if name in match[2] else f"{match[1]} (`{match[2]}`)"

    return _OUTSIDE.sub(plain, markdown)
