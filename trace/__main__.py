"""`python -m trace_vlm COMMAND ...`, where the `trace-vlm` script is not on the PATH."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
