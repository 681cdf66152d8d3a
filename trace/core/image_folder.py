"""Where the files that records name lie: one rule for checks, training, benchmarks and everything else with pictures."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path

from ..utils.files import leaves


class Images:
    """Finds the files that records name: in `folder`, in its `images/`, or beside it when names carry the folder.

    A name that is written with other Unicode code points than the file's (é as one or as two, as macOS stores it) is
    the same name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._roots = (folder, folder / "images", folder.parent)
        # one instance, one cache: samples of one image mostly follow each other
        self.find = lru_cache(maxsize=4096)(self._find)

    def __reduce__(self) -> tuple[type[Images], tuple[Path]]:
        return Images, (self.folder,)  # for another process, which has a cache of its own

    def _find(self, name: str) -> Path | None:
        """The file, None when there is none. A name that leaves the folder is never followed."""
        if leaves(name):
            return None
        names = dict.fromkeys([name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)])
        try:
            return next((path for root in self._roots for one in names if (path := root / one).is_file()), None)
        except (OSError, ValueError):  # longer than a name can be, or no name at all
            return None

    def path(self, name: str) -> Path:
        """The file; where none is found, the path below the folder that an error is to name."""
        return self.find(name) or self.folder / name

    def problem(self, name: str) -> str | None:
        if leaves(name):
            return f"the name {name!r} leaves the image folder"
        return None if self.find(name) else f"{name} is not in {self.folder}"
