"""The terminal view of `luthier serve-check`."""

from typing import Any

from luthier.report.terminal import columns, facts, heading, indented, printing, styled
from luthier.serving.serve_check import Checked

_NOT_CHECKED = "not checked"


def checked_json(checked: Checked) -> dict[str, Any]:
    """What was found, as JSON."""
    return {
        "endpoint": checked.endpoint,
        "model": checked.model,
        "server": vars(checked.server),
        "probes": checked.probes,
        "holds": checked.holds,
        "gates": [gate.model_dump(mode="json") for gate in checked.gates],
        "not_checked": [vars(one) for one in checked.not_checked],
    }


def checked_table(checked: Checked) -> None:
    """A line for each check, and below what each of them saw."""
    with printing() as console:
        where = f"{checked.endpoint}: {checked.server.name}, model {checked.model}"
        heading(console, f"{where}, {checked.probes} probes")
        table = columns(console, ["check", "status", "measured", "wanted"])
        for gate in checked.gates:
            measured = (
                f"{gate.measured:.4g}" if isinstance(gate.measured, float) else gate.measured
            )
            wanted = f"{gate.comparison} {gate.threshold}"
            table.add_row(gate.id, styled(gate.status, gate.status), str(measured), wanted)
        for one in checked.not_checked:
            table.add_row(one.id, styled(_NOT_CHECKED, "warn"), "", "")
        indented(console, table)
        console.print()
        facts(
            console,
            [
                *((gate.id, gate.detail) for gate in checked.gates if gate.detail),
                *((one.id, f"{_NOT_CHECKED}: {one.why}") for one in checked.not_checked),
            ],
        )
        console.print()
        failed = ", ".join(gate.id for gate in checked.gates if gate.status == "fail")
        told = f"Not what was measured: {failed}." if failed else "It serves what was measured."
        console.print(styled(told, "pass" if checked.holds else "fail"))
