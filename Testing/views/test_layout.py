"""The layout makes the view nodes that it names."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from DiffDRRSlicerLib.scene import layout
from Testing.mrml.views import SliceView


def test_showing_the_layout_makes_its_view_nodes(app):
    assert layout.view_nodes(app.scene) is None
    layout.show_layout(app.layout_node)
    views = layout.view_nodes(app.scene)
    assert (views.xray.GetLayoutLabel(), views.carm.GetLayoutLabel()) == ("X", "C")
    assert views.xray.IsA("vtkMRMLSliceNode") and views.carm.IsA("vtkMRMLViewNode")
    assert views.xray.GetViewGroup() == views.carm.GetViewGroup() != views.free.GetViewGroup() == 0
    assert views.free.GetLayoutName() == "1"
    assert not views.carm.GetBoxVisible()
    assert all(app.scene.GetSingletonNode(name, "vtkMRMLSliceNode") for name in ("Red", "Yellow", "Green"))
    assert app.layout_node.GetViewArrangement() == layout.LAYOUT_ID


def test_showing_it_again_keeps_what_the_user_set(app):
    layout.show_layout(app.layout_node)
    layout.view_nodes(app.scene).carm.SetBoxVisible(True)
    layout.show_layout(app.layout_node)
    assert layout.view_nodes(app.scene).carm.GetBoxVisible()


def test_the_views_of_a_saved_scene_are_a_group_again(app, tmp_path):
    layout.show_layout(app.layout_node)
    group = layout.view_nodes(app.scene).xray.GetViewGroup()
    app.scene.Commit(str(tmp_path / "scene.mrml"))
    app.scene.Clear(False)
    app.scene.SetURL(str(tmp_path / "scene.mrml"))
    app.scene.Connect()
    layout.show_layout(app.layout_node)
    views = layout.view_nodes(app.scene)
    assert views.xray.GetViewGroup() == views.carm.GetViewGroup() == group


def test_the_views_survive_the_scene_being_closed(app):
    layout.show_layout(app.layout_node)
    view = app.slice_view(layout.view_nodes(app.scene).xray)
    app.scene.Clear(False)
    assert layout.view_nodes(app.scene).xray is view.node
    assert view.grab().max() == 0


def test_registering_twice_is_once_and_replaces(app):
    layout.register_layout(app.layout_node)
    count = len(app.layout_node.GetLayoutIndices())
    app.layout_node.SetLayoutDescription(layout.LAYOUT_ID, "<layout/>")
    layout.register_layout(app.layout_node)
    assert len(app.layout_node.GetLayoutIndices()) == count
    assert app.layout_node.GetLayoutDescription(layout.LAYOUT_ID) == layout.layout_xml()


def test_the_description_is_well_formed_and_its_tags_are_unique():
    root = ET.fromstring(layout.layout_xml())
    tags = [view.get("singletontag") for view in root.iter("view")]
    assert len(tags) == len(set(tags)) == 6
    assert layout.LAYOUT_ID > 100 and layout.LAYOUT_ID not in (1020, 1021)


def test_the_composite_node_of_a_view(app):
    layout.show_layout(app.layout_node)
    views = layout.view_nodes(app.scene)
    assert layout.composite_node(app.scene, views.xray) is None
    view = app.slice_view(views.xray)
    assert isinstance(view, SliceView)
    assert layout.composite_node(app.scene, views.xray) is view.composite
