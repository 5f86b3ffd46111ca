"""An overview of the cluster in words, for a terminal at 3 a.m."""

from typing import Final

from gateway.cluster.overview import GONE, NodeView, Overview

_HEADINGS: Final = ("node", "state", "slots", "epochs", "conversations", "connections", "lease", "reached at")
_NUMBERS: Final = frozenset(("slots", "conversations", "connections"))


def as_text(found: Overview) -> str:
    """Several lines."""
    living = sum(view.state not in GONE for view in found.nodes)
    silent = sum(view.state == "silent" for view in found.nodes)
    lines = [
        f"cluster in keyspace {found.keyspace}: {living} {'node' if living == 1 else 'nodes'} alive, "
        + (f"{silent} silent, " if silent else "")
        + f"{found.slots} slots, their table at version {found.table_version}",
        "",
    ]
    if found.nodes:
        lines += [*_table(found.nodes), ""]
    if found.concerns:
        lines += ["To know:", *(f"- {concern}" for concern in found.concerns)]
    else:
        lines.append("Everything is in order.")
    if any(view.state == "unasked" for view in found.nodes):
        lines += [
            "",
            "Nodes were not asked: give this command their cluster_secret to see conversations and connections.",
        ]
    return "\n".join(lines)


def _table(nodes: list[NodeView]) -> list[str]:
    rows = [_HEADINGS, *(_row(view) for view in nodes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return [
        "  ".join(
            cell.rjust(width) if heading in _NUMBERS else cell.ljust(width)
            for heading, cell, width in zip(_HEADINGS, row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _row(view: NodeView) -> tuple[str, ...]:
    told = view.told
    lowest, highest = view.epochs
    lease = ""
    if told is not None:
        lease = f"valid for {told.lease_s:g} s" if told.lease_s else "in doubt"
    elif view.unrenewed_s is not None:
        lease = f"renewed {view.unrenewed_s:.1f} s ago"
    return (
        view.node,
        view.state if view.owns else f"{view.state} (edge)",
        f"{view.slots:,}",
        "" if not highest else str(highest) if lowest == highest else f"{lowest} to {highest}",
        f"{told.conversations:,}" if told is not None else "",
        f"{told.connections:,}" if told is not None else "",
        lease,
        view.address,
    )
