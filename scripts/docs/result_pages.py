"""Pages of the results: one for each file of benchmarks/results, with its tables, and a list of them.

Run by mkdocs (mkdocs.yml). Values stand as they are in the file, rounded to four digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mkdocs_gen_files

ROOT = Path(__file__).parents[2]


def cell(value: Any) -> str:
    """Write a value for people: yes and no, commas in thousands, at most four digits of a fraction."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [[head.replace("_", " ") for head in heads], ["---"] * len(heads), *([*map(cell, row)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def by_name(columns: dict[str, dict[str, Any]], first: str) -> str:
    """Return dictionaries as the columns of one table, their keys as its rows."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    return table([first, *columns], [[n, *(column.get(n, "") for column in columns.values())] for n in names])


def tables(data: dict[str, Any]) -> Iterator[str]:
    """Yield the tables of a result file: of its cases, of what it has by name, and of its single values."""
    data = dict(data)
    for key in [key for key, value in data.items() if isinstance(value, list)]:
        cases = data.pop(key)
        names = list(dict.fromkeys(name for case in cases for name in case))
        same = [n for n in names if len(cases) > 1 and all(case.get(n) == cases[0].get(n) for case in cases)]
        parts = [n for n in names if any(isinstance(case.get(n), dict) for case in cases)]
        heads = [n for n in names if n not in same and n not in parts]
        rows = [[number, *(case.get(n, "") for n in heads)] for number, case in enumerate(cases, 1)]
        yield f"## {key.capitalize()}\n\n{table(['', *heads], rows)}"
        for part in parts:
            columns = {str(number): case.get(part, {}) for number, case in enumerate(cases, 1)}
            yield f"## {part.replace('_', ' ').capitalize()}, by case\n\n{by_name(columns, '')}"
        data |= {f"{n} (every case)": cases[0][n] for n in same if n not in parts}
    if columns := {key: data.pop(key) for key, value in list(data.items()) if isinstance(value, dict)}:
        yield f"## By name\n\n{by_name(columns, '')}"
    yield f"## The run\n\n{table(['', 'value'], [[key.replace('_', ' '), value] for key, value in data.items()])}"


def write() -> None:
    entries = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs/experiments").glob("2*.md"))}
    rows = []
    for path in sorted((ROOT / "benchmarks/results").glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        machine, date = data.get("machine") or data.get("device", ""), data.get("date") or path.stem.rpartition("_")[2]
        links = [f"[{text.splitlines()[0].removeprefix('# ')}](../experiments/{entry.name})"
                 for entry, text in entries.items() if f"results/{path.name})" in text]  # fmt: skip
        with mkdocs_gen_files.open(f"results/{path.stem}.md", "w") as page:
            print(f"# {path.stem.replace('_', ' ')}\n\n{machine}, {date}; made from `benchmarks/results/{path.name}`.\n"
                  f"Entries: {', '.join(links) or 'none yet'}.\n", *tables(data), sep="\n", file=page)  # fmt: skip
        rows.append([f"[{path.stem}]({path.stem}.md)", machine, date, ", ".join(links)])
    with mkdocs_gen_files.open("results/index.md", "w") as page:
        print(
            "# Results\n\nTables of the GPU runs and of the run with faults, made from the files of `benchmarks/results`.\n",
            file=page,
        )
        print(table(["file", "hardware", "date", "entry"], rows), file=page)


write()
