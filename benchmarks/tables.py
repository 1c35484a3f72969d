"""Shows a benchmark's table to people, and hands it to `report.py`, which writes docs/performance.md."""

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

FILE_VARIABLE = "BENCHMARK_MARKDOWN"  # names the file that tables are added to as Markdown


def show_table(console: Console, table: Table) -> None:
    console.print(table)
    if path := os.environ.get(FILE_VARIABLE):
        with Path(path).open("a") as file:
            file.write(markdown(table) + "\n")


def say(console: Console, sentence: str) -> None:
    """Print a line that belongs to the tables."""
    console.print(sentence)
    if path := os.environ.get(FILE_VARIABLE):
        with Path(path).open("a") as file:
            file.write(f"{_plain(sentence)}\n\n")


def markdown(table: Table) -> str:
    """Write a table as Markdown, its title as a line of bold above it, without colours."""
    rows = list(zip(*([_plain(cell) for cell in column.cells] for column in table.columns), strict=True))
    lines = [[_plain(column.header) for column in table.columns], ["---"] * len(table.columns), *rows]
    title = f"**{_plain(table.title)}**\n\n" if table.title else ""
    return title + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _plain(cell: object) -> str:
    text = cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain
    return " ".join(text.split()).replace("|", "\\|")
