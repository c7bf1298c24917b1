"""The report for people: tables at the terminal, and the same in Markdown."""

from collections.abc import Sequence

from rich.table import Table

from benchmarks.rows import Json

_COLUMNS = ("id", "what", "callers", "ratio", "goal", "p50 ms", "p99 ms", "base p50", "CPU µs/call", "base CPU")


def cells_of(row: Json) -> list[str]:
    """A comparison as it is shown."""
    met = {True: " ✔", False: " ✘", None: ""}[row["met"]]  # type: ignore[index]
    ratio = "not reported" if row["ratio"] is None else f"{row['ratio']}{met}"
    goal = "" if row["goal"] is None else f"{'≤' if row['goal_is'] == 'at most' else '≥'} {row['goal']}"
    shown = ("p50_ms", "p99_ms", "baseline_p50_ms", "cpu_us_per_call", "baseline_cpu_us_per_call")
    return [str(row["id"]), str(row["what"]), str(row["callers"]), ratio, goal, *(str(row[name]) for name in shown)]


def figures_of(row: Json) -> str:
    """A figure as it is shown: its values by name."""
    known = ("id", "what", "met", "note", "measured_at", "machine")
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items() if name not in known)


PEER_COLUMNS = (
    "row",
    "durable",
    "their calls/s",
    "p50 ms",
    "Twofold's",
    "p50 ms",
    "ours / theirs",
    "with a token",
)


def peer_cells_of(row: Json) -> list[str]:
    """A row of P11 as it is shown."""
    if "not_run" in row:
        return [str(row["id"]), "not run here:", str(row["not_run"]), "", "", "", "", ""]
    met = {True: " ✔", False: " ✘", None: ""}[row["met"]]  # type: ignore[index]
    with_token = row.get("twofold_with_token_over_peer", "")
    return [
        str(row["id"]),
        "yes" if row["durable"] else "no",
        *(str(row[name]) for name in ("rate_per_s", "p50_ms", "twofold_rate_per_s", "twofold_p50_ms")),
        f"{row['twofold_over_peer']}{met}",
        str(with_token),
    ]


def peers(rows: Sequence[Json]) -> Table:
    """Rows of P11, for the terminal."""
    table = Table(*PEER_COLUMNS)
    for row in rows:
        table.add_row(*peer_cells_of(row))
    return table


def compared(rows: Sequence[Json]) -> Table:
    """Comparisons, for the terminal."""
    table = Table(*_COLUMNS)
    for row in rows:
        table.add_row(*cells_of(row))
    return table


def figures(rows: Sequence[Json]) -> Table:
    """Figures, for the terminal."""
    table = Table("id", "what", "measured")
    for row in rows:
        table.add_row(str(row["id"]), str(row["what"]), figures_of(row))
    return table


def is_compared(row: Json) -> bool:
    """Whether it is a comparison with a baseline."""
    return "ratio" in row


def is_peer(row: Json) -> bool:
    """Whether it is a row of P11."""
    return str(row["id"]).startswith("P11-")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
