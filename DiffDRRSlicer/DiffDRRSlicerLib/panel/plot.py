"""A plot inside the panel."""

from __future__ import annotations

import slicer


class Plot:
    """A plot view that is made when there is something to show.

    Args:
        place: widget whose layout takes it.
        name: of its view node, one in each scene.
    """

    def __init__(self, place, name: str):
        self._place, self._name, self._view = place, name, None
        self._fitted = None  # what the axes were fitted to

    def show(self, chart) -> None:
        """Show a plot chart node; None hides the view."""
        if self._view is not None:
            self._view.visible = chart is not None
        if chart is None:
            return
        if self._view is None:
            self._view = slicer.qMRMLPlotView()
            self._view.minimumHeight = 200
            self._place.layout().addWidget(self._view)
        node = self.node
        self._view.setMRMLScene(slicer.mrmlScene)
        self._view.setMRMLPlotViewNode(node)
        if node.GetPlotChartNodeID() != chart.GetID():
            node.SetPlotChartNodeID(chart.GetID())
        self._fit(chart)

    def _fit(self, chart) -> None:
        """Have the axes take in all rows: the view fits them to the first ones only. Without new rows, zooms stay."""
        series = [chart.GetNthPlotSeriesNode(index) for index in range(chart.GetNumberOfPlotSeriesNodes())]
        tables = [one.GetTableNode() for one in series if one is not None]
        state = chart.GetID(), [table.GetMTime() for table in tables if table is not None]
        if state != self._fitted:
            self._fitted = state
            self._view.chart().Update()  # else it is fitted to the rows that were drawn last
            self._view.fitToContent()

    @property
    def node(self):
        """The view's node, made where there is none."""
        node = slicer.mrmlScene.GetSingletonNode(self._name, "vtkMRMLPlotViewNode")
        if node is None:
            node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLPlotViewNode")
            node.UnRegister(None)
            node.SetSingletonTag(self._name)
            node.SetName(self._name)
            node.SetLayoutName(self._name)
            node = slicer.mrmlScene.AddNode(node)
        return node
