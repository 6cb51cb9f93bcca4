"""Table and plot nodes that belong to a C-arm."""

from __future__ import annotations

from collections.abc import Mapping

import vtk

from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.carm import CArmNode


def node_of(carm: CArmNode, role: str, class_name: str, name: str):
    """The C-arm's node of that role, made where there is none; for nodes that have no place in space."""
    node = carm.referred(role)
    if node is None:
        node = nodes.add_node(carm.scene, class_name, f"{carm.name} {name}")
        carm.refer(role, node)
    return node


def begin_table(table, columns: Mapping[str, type]) -> None:
    """Give a table node empty columns of these types (int, float or str)."""
    arrays = {int: vtk.vtkIntArray, float: vtk.vtkDoubleArray, str: vtk.vtkStringArray}
    content = vtk.vtkTable()
    for name, kind in columns.items():
        column = arrays[kind]()
        column.SetName(name)
        content.AddColumn(column)
    table.SetAndObserveTable(content)


def add_rows(table, rows) -> None:
    """Append rows of plain values, in the columns' order, in one event."""
    content = table.GetTable()
    for values in rows:
        row = content.InsertNextBlankRow()
        for column, value in enumerate(values):
            content.GetColumn(column).SetValue(row, value)
    content.Modified()
    table.Modified()
