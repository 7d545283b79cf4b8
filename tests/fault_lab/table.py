"""The table of a run: a row for each fault."""

import math
from collections.abc import Sequence

from tests.fault_lab.trial import Outcome

__all__ = ["render"]

_HEAD = ("fault", "users see", "lost/dup/order", "holes", "healed", "resyncs", "p99", "verdict")


def render(outcomes: Sequence[Outcome]) -> str:
    """Draw the table, then the figures and broken promises."""
    rows = [_HEAD, *map(_row, outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    for outcome in outcomes:
        if outcome.figures or outcome.broken:
            lines.append("")
            lines.append(f"{outcome.fault.name}: {'; '.join(outcome.figures)}")
            lines += [f"    BROKEN: {text}" for text in outcome.broken]
            if outcome.broken:
                lines += [f"      {example}" for example in outcome.verdict.examples[:5]]
    return "\n".join(lines)


def _row(outcome: Outcome) -> tuple[str, ...]:
    verdict = outcome.verdict
    healed = "never" if math.isinf(outcome.healed_s) else f"{outcome.healed_s:.1f} s"
    return (
        outcome.fault.name,
        outcome.fault.users_see,
        f"{verdict.lost}/{verdict.duplicated}/{verdict.out_of_order}",
        str(verdict.holes),
        healed,
        str(verdict.resyncs),
        f"{outcome.delays.p99_s * 1000:.0f} ms",
        "BROKEN" if outcome.broken else "kept",
    )
