"""Results as tables: the README's and the one of all rows, between marks of their pages, and what a run says as it goes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .conductor import where
from .models import SHAPES
from .start import NAME as START
from .start import STEPS
from .workloads import EVERY

BEGIN, END = "<!-- speed -->\n", "<!-- /speed -->"
PEER = "sentence-transformers"
"""The peer whose default has a column of its own."""


def read(results: Path) -> list[dict[str, Any]]:
    """Entries of all workloads, in the order of machines, models and workloads."""
    entries = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*/*/*/*.json"))]
    return sorted(
        entries,
        key=lambda e: (
            e["device"],
            e["precision"] != "fp32",  # which comes first
            where(e["machine"]),
            list(SHAPES).index(e["model"]["name"]),
            EVERY.index(e["workload"]),
        ),
    )


def row_of(entry: dict[str, Any], system: str) -> dict[str, Any] | None:
    """The default of a system."""
    return next((row for row in entry["systems"] if row["system"] == system and row["default"]), None)


def best_of(entry: dict[str, Any], system: str) -> dict[str, Any] | None:
    """A system at its best setting, or None where it was not here."""
    rows = [row for row in entry["systems"] if row["system"] == system]
    return min(rows, key=lambda row: row["median_s"], default=None)


def setting_of(row: dict[str, Any]) -> str:
    """A system and how it was set, in a few words."""
    setting = {key: value for key, value in row["setting"].items() if value != "default"}
    words = {"attention": "{}", "compiled": "compiled"}
    said = ", ".join(words.get(key, f"{key} {{}}").format(value) for key, value in setting.items())
    return f"{row['system']}, {said}" if said else row["system"]


def speed(row: dict[str, Any], alone: bool) -> str:
    return f"{1000 * row['median_s']:.1f} ms" if alone else f"{_digits(row['items_per_s'])}/s"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _difference(entry: dict[str, Any]) -> str:
    return f"{max(row['difference'] for row in entry['systems'] if 'difference' in row):.0e}".replace("e-0", "e-")


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def of_model(entries: Sequence[dict[str, Any]]) -> list[str]:
    """The table of one model: a row a workload and a setting of ours; under each peer how many times its time ours is of, the
    default of one and the best setting of all."""
    peers = list(
        dict.fromkeys(row["system"] for entry in entries for row in entry["systems"] if row["system"] != "mmembed")
    )
    head = [
        "workload",
        "mmembed",
        *(f"{peer}, default / best" if peer == PEER else peer for peer in peers),
        "of peak",
        "difference",
    ]
    rows = []
    for entry in entries:
        for ours in (row for row in entry["systems"] if row["system"] == "mmembed"):
            cells = []
            for peer in peers:
                shown = [row_of(entry, peer)] if peer == PEER else []
                shown.append(best_of(entry, peer))
                cells.append(" / ".join(_ratio(row, ours) for row in shown if row is not None))
            alone = entry["workload"].startswith("one query")
            share = "" if alone else f"{ours['share_of_peak']:.2f}"  # what stands kept is no work of the call
            said = f"{entry['said']}, compiled" if ours["setting"].get("compiled") else entry["said"]
            rows.append([said, speed(ours, alone), *cells, share, _difference(entry)])
    return _rows(head, rows)


def _ratio(row: dict[str, Any], ours: dict[str, Any]) -> str:
    """How many times as long as ours: two digits, and all before the point."""
    ratio = row["median_s"] / ours["median_s"]
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}" if ratio < 1 else f"{ratio:.1f}"


def started(entry: dict[str, Any]) -> list[str]:
    """The table of fresh processes."""
    head = ["fresh process", "model", *(f"{step}, s" for step in STEPS[:-1]), "all, s"]
    rows = [
        [row["system"], row["model"], *(f"{row[step]:.2f}" for step in STEPS[:-1]), f"{row['all']:.1f}"]
        for row in entry["systems"]
    ]
    return _rows(head, rows)


def written(results: Path) -> str:
    """All tables, a device, a machine and a model at a time."""
    lines: list[str] = []
    groups: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for entry in read(results):
        said = entry["device"], entry["precision"], _machine(entry), entry["model"]["said"]
        groups.setdefault(said, []).append(entry)
    for (device, precision, machine, model), entries in groups.items():
        found = entries[-1]["versions"]
        packages = ", ".join(f"{p} {found[p]}" for p in ("torch", "transformers", PEER) if p in found)
        lines += [
            f"**{model}**, {_weights(entries)}, {precision}, {device}: {machine}; {packages}",
            "",
            *of_model(entries),
            "",
        ]
    for path in sorted(results.glob(f"*/*/{START}.json")):
        entry = json.loads(path.read_text(encoding="utf-8"))
        lines += [f"**Fresh processes**, {_machine(entry)}", "", *started(entry), ""]
    return "\n".join(lines[:-1]) + "\n"


def _weights(entries: Sequence[dict[str, Any]]) -> str:
    """Which the models have; what was measured before they were rounded does not say."""
    numbers = {entry["model"].get("numbers") for entry in entries}
    rounded = "random weights, rounded to bf16 as released decoders are"
    return "random weights" if "bf16" not in numbers else rounded + ", but BERT's" * ("fp32" in numbers)


def _machine(entry: dict[str, Any]) -> str:
    machine = entry["machine"]
    return where(machine) if "gpu" in machine else f"{where(machine)}, {machine['threads']} threads"


def shortened(results: Path) -> str:
    """The README's: of each device and precision the machines that were measured on the last day, `encode` as it is beside
    sentence-transformers and the fastest of all others."""
    lines: list[str] = []
    entries = read(results)
    days: dict[tuple[str, str], str] = {}
    for entry in entries:
        days[_kind(entry)] = max(entry["when"], days.get(_kind(entry), ""))
    newest = dict.fromkeys(_place(entry) for entry in entries if entry["when"] == days[_kind(entry)])
    for place in newest:
        shown = [entry for entry in entries if _place(entry) == place]
        head = ["model", "workload", "mmembed", f"{PEER}, default / best", "fastest other peer"]
        rows = []
        for entry in shown:
            ours, alone = row_of(entry, "mmembed"), entry["workload"].startswith("one query")
            assert ours is not None
            default, best = row_of(entry, PEER), best_of(entry, PEER)
            ratios = " / ".join(_ratio(row, ours) for row in (default, best) if row is not None)
            others = [row for row in entry["systems"] if row["system"] not in ("mmembed", PEER)]
            other = min(others, key=lambda row: row["median_s"], default=None)
            said = "" if other is None else f"{other['system']} {_ratio(other, ours)}"
            rows.append([entry["model"]["said"], entry["said"], speed(ours, alone), ratios, said])
        lines += [f"**{_machine(shown[0])}**, {shown[0]['precision']}, {_weights(shown)}", "", *_rows(head, rows), ""]
    return "\n".join(lines[:-1]) + "\n"


def _kind(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["device"], entry["precision"]


def _place(entry: dict[str, Any]) -> tuple[str, str, str]:
    return *_kind(entry), where(entry["machine"])


def into(page: Path, tables: str) -> None:
    """Write tables between the marks of a page."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    page.write_text(f"{before}{BEGIN}{tables}{END}{rest.split(END)[1]}", encoding="utf-8")


def told(entry: dict[str, Any]) -> list[str]:
    """One workload with every system and setting, for the terminal: its speed, times as long as mmembed by the clock and in
    seconds of the processor (which others on a busy machine disturb less), share of peak, memory, difference."""
    alone = entry["workload"].startswith("one query")
    ours = row_of(entry, "mmembed")
    lines = []
    for row in entry["systems"]:
        ratios = ""
        if ours is not None:
            used = [statistics.median(each["cpu_seconds"]) for each in (row, ours)]
            ratios = f"x{_ratio(row, ours)} (cpu x{used[0] / used[1]:.2f})"
        lines.append(
            f"  {setting_of(row):<36}{speed(row, alone):>9} {ratios:<19} {row['share_of_peak']:.2f} of peak"
            f"{row['peak_mb']:7.0f} MB  {row.get('difference', 0):.0e}"
        )
    return lines
