"""`python -m trace.data.sources`: the commands in `cli`."""

from ...utils.command import run
from .cli import main

if __name__ == "__main__":
    raise SystemExit(run(main))
