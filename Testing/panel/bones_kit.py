"""The section "Bones and X-rays" on a phantom: what a user does there, and what stands in its tables."""

from __future__ import annotations

from Testing.panel.kit import add_phantom, sections, settle

SIZE = 64


def bones_panel(app, widget):
    """The panel with a phantom, its labels and an X-ray of it chosen, the section open."""
    panel = widget.panel
    ct, labels = add_phantom(app.scene, shape=(24, 18, 21), spacing=16.0, labels=True)
    panel.parameters.ct, panel.parameters.labels = ct, labels
    panel.parameters.carm = panel.logic.createCArm(ct, SIZE, SIZE, (6.0, 6.0))
    sections(panel)["Bones and X-rays"].button.collapsed = False
    settle(app, panel)
    sections(panel)["Load"].ui.simulateButton.click()
    settle(app, panel)
    return panel


def ui(panel):
    return sections(panel)["Bones and X-rays"].ui


def add(app, panel, *names):
    """Check structures and press Add; the bone."""
    import qt

    combo = ui(panel).boneStructuresSelector
    offered = [combo.itemText(index) for index in range(combo.count)]
    for name in names:
        combo.setCheckState(combo.model().index(offered.index(name), 0), qt.Qt.Checked)
    ui(panel).addBoneButton.click()
    settle(app, panel)
    return bones(panel)[-1]


def bones(panel):
    from DiffDRRSlicerLib.scene.bodies import BodyNode

    return BodyNode.of(panel.anatomy)


def cell(table, row, column):
    return table.item(row, column)


def texts(table):
    columns = range(table.columnCount)
    return [[table.item(row, column).text() for column in columns] for row in range(table.rowCount)]
