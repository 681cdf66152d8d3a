"""Load a model and save it again: an adapter merged into its base, or another type on disk.

python -m trace.model.convert OUT/projector trace/assets/nano-base --dtype float16
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..command import Parser, run


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="trace.model.convert", description="Load a model and save it as one whole folder.")
    parser.add_argument("source", help="folder of the model or adapter")
    parser.add_argument("target", type=Path, help="folder to write; must not exist or be empty")
    parser.add_argument("--base", "--model-base", help="the model that an adapter belongs to")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="type on disk")
    args = parser.parse_args(argv)
    from .checkpoint import load, save

    save(load(args.source, args.base), args.target, args.dtype)
    print(f"wrote {args.target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
