"""What the tables of README.md and docs/ have in common: each lies between two markers of its page."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
END = "<!-- end of what it makes -->"


def start_marker(command: str, which: str = "") -> str:
    """The line of a page after which ``python -m benches COMMAND`` puts its table, or the one ``which`` names."""
    return f"<!-- made by `python -m benches {command}`{which and ', ' + which} -->"


def with_table(text: str, made: str, start: str, page: Path) -> str:
    """``text``, of ``page``, with ``made`` between the markers ``start`` and END, which it must have."""
    before, opening, rest = text.partition(start)
    _, closing, after = rest.partition(END)
    if not (opening and closing):
        raise SystemExit(f"{page} lacks its two markers, {start} and {END}")
    return f"{before}{start}\n\n{made}\n\n{END}{after}"
