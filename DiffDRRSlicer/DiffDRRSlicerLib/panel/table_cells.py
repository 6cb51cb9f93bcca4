"""Tables that a user types into."""

from __future__ import annotations

import qt

from DiffDRRSlicerLib.panel.section import NotReadyError


def number(text: str) -> float:
    """What was typed, with a point or a comma. Raises NotReadyError for anything else."""
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise NotReadyError(f"'{text}' is no number.") from None


def begin(table, titles, count: int) -> None:
    """Columns of these titles, the first with the room that others leave, and empty rows."""
    table.setColumnCount(len(titles))
    table.setHorizontalHeaderLabels(list(titles))
    table.horizontalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
    table.horizontalHeader().setSectionResizeMode(0, qt.QHeaderView.Stretch)
    table.verticalHeader().hide()
    table.setRowCount(0)
    table.setRowCount(count)


def put(table, row: int, column: int, text: str = "", editable=False, checked=None, enabled=True):
    """A cell with a text, and a check mark where `checked` is not None."""
    item = qt.QTableWidgetItem(text)
    item.setToolTip(text)
    flags = qt.Qt.ItemIsSelectable
    for wanted, flag in (
        (enabled, qt.Qt.ItemIsEnabled),
        (editable, qt.Qt.ItemIsEditable),
        (checked is not None, qt.Qt.ItemIsUserCheckable),
    ):
        flags = flags | flag if wanted else flags
    item.setFlags(flags)
    if checked is not None:
        item.setCheckState(qt.Qt.Checked if checked else qt.Qt.Unchecked)
    table.setItem(row, column, item)
    return item
