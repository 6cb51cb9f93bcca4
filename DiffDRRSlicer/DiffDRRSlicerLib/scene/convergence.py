"""The curve of a registration as it runs: a table, and a plot of it."""

from __future__ import annotations

import slicer

from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.tables import add_rows, begin_table, node_of

COLUMNS = {"step": int, "seconds": float, "similarity": float, "level": int}


class ConvergenceCurve:
    """Nodes of roles "convergence table", "convergence series" and "convergence chart" of a C-arm, emptied.

    They are made once and used again by the next registration.
    """

    def __init__(self, carm: CArmNode):
        self.table = node_of(carm, "convergence table", "vtkMRMLTableNode", "convergence")
        self.chart = node_of(carm, "convergence chart", "vtkMRMLPlotChartNode", "convergence plot")
        series = node_of(carm, "convergence series", "vtkMRMLPlotSeriesNode", "similarity")
        begin_table(self.table, COLUMNS)
        series.SetAndObserveTableNodeID(self.table.GetID())
        series.SetXColumnName("step")
        series.SetYColumnName("similarity")
        series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
        series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone)
        self.chart.RemoveAllPlotSeriesNodeIDs()
        self.chart.AddAndObservePlotSeriesNodeID(series.GetID())
        self.chart.SetTitleVisibility(False)  # it is as wide as the panel
        self.chart.SetAxisTitleFontSize(12)
        self.chart.SetAxisLabelFontSize(10)
        self.chart.SetXAxisTitle("step")
        self.chart.SetYAxisTitle("similarity")
        self.chart.SetLegendVisibility(False)

    def add(self, seconds: float, similarity: float, level: int) -> None:
        """A row more."""
        add_rows(self.table, [(self.table.GetTable().GetNumberOfRows() + 1, seconds, similarity, level)])
