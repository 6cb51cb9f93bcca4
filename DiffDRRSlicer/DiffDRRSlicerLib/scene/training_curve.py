"""The loss of a training as it goes: a table, and a plot of it."""

from __future__ import annotations

from pathlib import Path

import slicer

from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.learning.training.logs import read_log
from DiffDRRCore.learning.training.run_files import LOG
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.tables import add_rows, begin_table

ROLE = "DiffDRR.Training"  # attribute by which the nodes are found again
COLUMNS = {"step": int, "loss": float}


class TrainingCurve:
    """The scene's nodes for the loss, made at the first row; those of an earlier training are used again."""

    def __init__(self, scene):
        self._scene = scene
        self._seen = None

    @property
    def chart(self):
        """The plot's node, or None as long as there is none."""
        return find(self._scene, "vtkMRMLPlotChartNode")

    @property
    def table(self):
        """The table's node, or None."""
        return find(self._scene, "vtkMRMLTableNode")

    def follow(self, folder: Path) -> None:
        """Show the log in `folder`; quick where nothing was added."""
        try:
            stamp = (str(folder), (folder / LOG).stat().st_mtime_ns, (folder / LOG).stat().st_size)
        except OSError:
            return
        if stamp == self._seen:
            return
        rows = read_losses(folder)
        if not rows:
            return
        table = self.table or self._make()
        shown = table.GetTable().GetNumberOfRows()
        goes_on = self._seen is not None and self._seen[0] == stamp[0] and shown <= len(rows)
        if not goes_on or (shown and _row(table, shown - 1) != rows[shown - 1]):
            begin_table(table, COLUMNS)
            shown = 0
        add_rows(table, rows[shown:])
        self._seen = stamp

    def _make(self):
        table = self._add("vtkMRMLTableNode", "Training")
        begin_table(table, COLUMNS)
        series = self._add("vtkMRMLPlotSeriesNode", "Training loss")
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetXColumnName("step")
        series.SetYColumnName("loss")
        series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
        series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone)
        chart = self._add("vtkMRMLPlotChartNode", "Training plot")
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
        chart.SetTitleVisibility(False)  # it is as wide as the panel
        chart.SetLegendVisibility(False)
        chart.SetAxisTitleFontSize(12)
        chart.SetAxisLabelFontSize(10)
        chart.SetXAxisTitle("step")
        chart.SetYAxisTitle("loss")
        return table

    def _add(self, class_name: str, name: str):
        node = find(self._scene, class_name) or nodes.add_node(self._scene, class_name, name)
        node.SetAttribute(ROLE, "1")
        return node


def find(scene, class_name: str):
    """The training's node of a class, or None."""
    for index in range(scene.GetNumberOfNodesByClass(class_name)):
        node = scene.GetNthNodeByClass(index, class_name)
        if node.GetAttribute(ROLE) is not None:
            return node
    return None


def read_losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of each whole row of a training's log; none where it cannot be read."""
    rows = []
    try:
        for row in read_log(folder):
            try:
                rows.append((int(row["step"]), float(row["loss"])))
            except (KeyError, ValueError):
                continue  # half a row that is being written
    except DiffDRRError:
        return []
    return rows


def _row(table, index: int) -> tuple[int, float]:
    content = table.GetTable()
    return content.GetValue(index, 0).ToInt(), content.GetValue(index, 1).ToDouble()
