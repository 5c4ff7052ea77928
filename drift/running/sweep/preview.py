"""What ``--dry-run`` and ``--json`` show of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drift.running.sweep.config import NO_TASK
from drift.running.sweep.cost import show_bytes, show_seconds
from drift.running.sweep.planning import Plan
from drift.running.sweep.selecting import select

__all__ = ["preview_json", "preview_words"]


def preview_json(todo: Plan, only: Sequence[str]) -> dict[str, Any]:
    """What a dry run shows, as a JSON object."""
    cells = select(todo, only)
    states = {cell.file: todo.state(cell) for cell in cells}
    todo_now = [cell for cell in cells if states[cell.file] == "pending"]
    listed = []
    for cell in cells:
        entry = {
            "file": cell.file,
            "state": states[cell.file],
            **cell.axes,
            "control": cell.control,
            "estimate": todo.estimate([cell]),
        }
        if states[cell.file] == "failed":
            entry["reason"] = todo.survey.failures[cell.file]["reason"]
        listed.append(entry)
    return {
        "name": todo.config.name,
        "folder": str(todo.folder),
        "dry_run": True,
        "cells": {
            "total": len(cells),
            "done": list(states.values()).count("done"),
            "failed": list(states.values()).count("failed"),
            "left": len(todo_now),
        },
        "descents": len(todo.groups(todo_now)),
        "estimate": todo.estimate(todo_now),
        "plan": listed,
        "broken": todo.survey.broken,
        "not_in_this_plan": todo.survey.strangers,
    }


def preview_words(preview: dict[str, Any]) -> list[str]:
    """A dry run in words."""
    columns = ["state", "model", "dtype", "protocol", "reference", "chunk_size", "documents", "tokens"]
    columns += ["task"] * any("task" in cell for cell in preview["plan"])
    columns += ["corpus", "device"]
    heads = {"chunk_size": "chunk", "documents": "docs"}
    rows = [[heads.get(name, name) for name in columns]]
    rows += [[str(cell.get(name, NO_TASK)) for name in columns] for cell in preview["plan"] if not cell["control"]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    counts, estimate = preview["cells"], preview["estimate"]
    controls = sum(bool(cell["control"]) for cell in preview["plan"])
    lines += [
        *(
            [f"and {controls} control cells: short texts with a known outcome (controls: false leaves them out)"]
            * bool(controls)
        ),
        "",
        (
            f"{preview['name']} in {preview['folder']}: {counts['total']} cells, {counts['done']} done, "
            f"{counts['failed']} failed, {counts['left']} left in {preview['descents']} descents."
        ),
    ]
    if counts["left"] > estimate["unknown"]:
        lines.append(
            f"Estimates for what is left: about {show_seconds(estimate['seconds'])}, "
            f"{show_bytes(estimate['memory_bytes'])} of memory at most, {show_bytes(estimate['disk_bytes'])} of disk."
        )
    if estimate["unknown"]:
        lines.append(f"No estimate for {estimate['unknown']} cells: their models are not fetched yet.")
    if counts["failed"]:
        lines += [f"  failed: {c['file']}: {c['reason']}" for c in preview["plan"] if c["state"] == "failed"][:20]
        lines.append("Failed cells stay failed until --retry-failed is given.")
    lines += [f"broken, will be set aside and computed again: {reason}" for reason in preview["broken"].values()]
    if preview["not_in_this_plan"]:
        lines.append(f"not in this plan, left alone: {', '.join(preview['not_in_this_plan'][:5])}" + (
            f" and {len(preview['not_in_this_plan']) - 5} more" if len(preview["not_in_this_plan"]) > 5 else ""
        ))  # fmt: skip
    return lines
