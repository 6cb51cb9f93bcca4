"""The module's arrangement of views: the X-ray, the scene from the X-ray source, the room, and the CT's slices.

The X-ray view and the C-arm view are a view group of their own, so that linked slice views and "show in all views"
leave them alone. The free 3D view and the slice views are Slicer's own, with what the user has set there.
"""

from __future__ import annotations

from collections import namedtuple

LAYOUT_ID = 20731  # Slicer's own end below 1000, and other extensions use numbers just above
XRAY_VIEW, CARM_VIEW, FREE_VIEW = "DiffDRRXRay", "DiffDRRCArm", "1"
_GROUP = 731
_SLICES = (("Red", "Axial", "#F34A33"), ("Yellow", "Sagittal", "#EDD54C"), ("Green", "Coronal", "#6EB04B"))

ViewNodes = namedtuple("ViewNodes", "xray carm free")


def layout_xml() -> str:
    """The layout as Slicer reads it: X-ray, C-arm view and free 3D view above, three CT slices below."""
    own = {"viewgroup": _GROUP}
    top = (
        _item(_view("vtkMRMLSliceNode", XRAY_VIEW, viewlabel="X", viewcolor="#4A9BD9", **own), 400),
        _item(_view("vtkMRMLViewNode", CARM_VIEW, viewlabel="C", viewcolor="#4A9BD9", **own), 400),
        _item(_view("vtkMRMLViewNode", FREE_VIEW, viewlabel="1"), 300),
    )
    bottom = (
        _item(_view("vtkMRMLSliceNode", name, orientation=orientation, viewlabel=name[0], viewcolor=color), 300)
        for name, orientation, color in _SLICES
    )
    rows = _item(_row("horizontal", top), 600) + _item(_row("horizontal", bottom), 300)
    return _row("vertical", [rows])


def register_layout(layout_node) -> None:
    """Tell Slicer's layout node of the layout; again after a reload of the module replaces it.

    To be called when Slicer starts: a scene that was saved in this layout asks for it while it loads.
    """
    if layout_node.IsLayoutDescription(LAYOUT_ID):
        layout_node.SetLayoutDescription(LAYOUT_ID, layout_xml())
    else:
        layout_node.AddLayoutDescription(LAYOUT_ID, layout_xml())


def show_layout(layout_node) -> None:
    """Arrange the views; the view nodes exist afterwards."""
    register_layout(layout_node)
    new = view_nodes(layout_node.GetScene()) is None
    layout_node.SetViewArrangement(LAYOUT_ID)
    views = view_nodes(layout_node.GetScene())
    if views is None:
        return
    group_views(views)
    if new:
        views.carm.SetBoxVisible(False)
        views.carm.SetAxisLabelsVisible(False)


def view_nodes(scene) -> ViewNodes | None:
    """The nodes of X-ray view (slice), C-arm view and free 3D view; None where the layout has not been shown yet."""
    found = ViewNodes(
        scene.GetSingletonNode(XRAY_VIEW, "vtkMRMLSliceNode"),
        scene.GetSingletonNode(CARM_VIEW, "vtkMRMLViewNode"),
        scene.GetSingletonNode(FREE_VIEW, "vtkMRMLViewNode"),
    )
    return None if None in found else found


def group_views(views: ViewNodes) -> None:
    """Make X-ray view and C-arm view a group of their own again: a saved scene brings them back as Slicer's group."""
    for view in (views.xray, views.carm):
        view.SetViewGroup(_GROUP)


def composite_node(scene, slice_node):
    """The vtkMRMLSliceCompositeNode that says which volumes a slice view shows; None before the view is drawn."""
    return scene.GetSingletonNode(slice_node.GetLayoutName(), "vtkMRMLSliceCompositeNode")


def _row(direction: str, items) -> str:
    return f'<layout type="{direction}" split="true">{"".join(items)}</layout>'


def _item(content: str, size: int) -> str:
    return f'<item splitSize="{size}">{content}</item>'


def _view(class_name: str, tag: str, **properties) -> str:
    texts = (f'<property name="{name}" action="default">{value}</property>' for name, value in properties.items())
    return f'<view class="{class_name}" singletontag="{tag}">{"".join(texts)}</view>'
