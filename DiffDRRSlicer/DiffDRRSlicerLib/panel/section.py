"""What every section of the panel has in common."""

from __future__ import annotations

from contextlib import contextmanager

import ctk
import qt
import slicer


class NotReadyError(ValueError):
    """Something has to be chosen, or to be there, first; the message says what."""


class Section:
    """One collapsible part of the panel, of a `.ui` file.

    Sections share the `Panel`: the nodes in use, the undo history, the way errors are shown. They call `scene`, which
    loads torch at first use; so nothing of it is touched before there is a CT or an X-ray to work on.
    """

    title = ""
    ui_file = ""
    collapsed = False

    def __init__(self, panel):
        self.panel = panel
        self.root = slicer.util.loadUI(panel.resource(f"UI/{self.ui_file}"))
        self.ui = slicer.util.childWidgetVariables(self.root)
        self.button = ctk.ctkCollapsibleButton()
        self.button.text = self.title
        self.button.collapsed = self.collapsed
        layout = qt.QVBoxLayout(self.button)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.root)
        self.root.setMRMLScene(slicer.mrmlScene)
        self.setup()

    def setup(self) -> None:
        """Connect the widgets."""

    def apply(self) -> None:
        """Bring the scene in line with the user's choices. Called after every change, before `refresh`."""

    def refresh(self) -> None:
        """Show the scene as it is now. Called after every change; cheap, and changes nothing in the scene."""

    def close(self) -> None:
        """Let go of the scene: it is being closed."""

    def click(self, button: str, action, text: str) -> None:
        """Run `action` when a button is clicked, and bring all up to date; an error is shown below `text`."""

        def clicked(*_):
            with self.panel.attempt(text):
                action()

        getattr(self.ui, button).connect("clicked()", clicked)

    def advance(self, work, failed: str, bar: str, label: str, ended) -> None:
        """Take the next piece of the section's work, and show its fraction and its text in two widgets.

        At its end `ended` gets what it returned. After an error the section's `_finish` comes first, then the message
        below the sentence `failed`.
        """
        try:
            step = next(work)
        except StopIteration as end:
            ended(end.value)
        except Exception as error:
            self._finish("")
            self.panel.show_error(failed, error)
        else:
            getattr(self.ui, bar).value = round(1000 * step.fraction)
            getattr(self.ui, label).text = step.text

    @contextmanager
    def quiet(self, *names: str):
        """These widgets can be written without their signals doing anything.

        Never block all of `ui`: widgets inside CTK's are there too, and a slider follows its spin box by signals.
        """
        widgets = [getattr(self.ui, name) for name in names]
        before = [widget.blockSignals(True) for widget in widgets]
        try:
            yield
        finally:
            for widget, was in zip(widgets, before, strict=True):
                widget.blockSignals(was)


def fill(combo, items, current=None) -> None:
    """Put texts into a combo box and choose one; nothing happens where it shows them already."""
    items = list(items)
    if [combo.itemText(index) for index in range(combo.count)] != items:
        combo.clear()
        combo.addItems(items)
    if current in items:
        combo.currentIndex = items.index(current)


def fill_table(table, headers, rows) -> None:
    """Write texts into a QTableWidget; the first column has the room that the others leave."""
    table.setColumnCount(len(headers))
    table.horizontalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
    table.horizontalHeader().setSectionResizeMode(0, qt.QHeaderView.Stretch)
    table.verticalHeader().hide()
    table.setHorizontalHeaderLabels(list(headers))
    table.setRowCount(len(rows))
    for row, texts in enumerate(rows):
        for column, text in enumerate(texts):
            item = table.item(row, column)
            if item is None:
                item = qt.QTableWidgetItem()
                table.setItem(row, column, item)
            item.setText(str(text))
            item.setToolTip(str(text))  # what is cut off in a narrow panel
    table.resizeRowsToContents()
