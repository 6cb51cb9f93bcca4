"""Reader of Qt Designer files. A class, property, signal or slot that the widget does not have raises."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from PySide6 import QtCore, QtGui, QtWidgets

from . import pythonqt

LAYOUTS = ("QVBoxLayout", "QHBoxLayout", "QFormLayout", "QGridLayout")
_MARGINS = ("leftMargin", "topMargin", "rightMargin", "bottomMargin")


class UiError(ValueError):
    """A .ui file that Slicer's Designer could not load."""


def load(path, classes: dict) -> QtWidgets.QWidget:
    """The widget of a .ui file, made from `classes` ({name: class})."""
    if not Path(path).is_file():
        raise UiError(f"{path} does not exist")
    root = ElementTree.parse(path).getroot()
    return _Reader(classes, Path(path)).read(root)


class _Reader:
    def __init__(self, classes, path):
        self.classes, self.path, self.names = classes, path, {}

    def fail(self, text):
        raise UiError(f"{self.path.name}: {text}")

    def read(self, root):
        declared = {c.findtext("class") for c in root.iterfind("customwidgets/customwidget")}
        for widget in root.iter("widget"):
            name = widget.get("class")
            if not hasattr(QtWidgets, name) and name not in declared:
                self.fail(f"{name} is not declared in <customwidgets>")
        top = self.widget(root.find("widget"), None)
        for connection in root.iterfind("connections/connection"):
            self.connect(*(connection.findtext(tag) for tag in ("sender", "signal", "receiver", "slot")))
        for label, buddy in [(w, w.__dict__["_buddy"]) for w in self.names.values() if "_buddy" in w.__dict__]:
            label.setBuddy(self.named(buddy))
        return top

    def named(self, name):
        if name not in self.names:
            self.fail(f"there is no object '{name}'")
        return self.names[name]

    def connect(self, sender, signal, receiver, slot):
        pythonqt.connect(self.named(sender), signal, self.named(receiver), slot)

    def keep(self, element, made):
        name = element.get("name")
        if name in self.names:
            self.fail(f"two objects are named '{name}'")
        self.names[name] = made
        made.setObjectName(name)

    def widget(self, element, parent):
        name = element.get("class")
        if name not in self.classes:
            self.fail(f"no widget class '{name}'")
        made = self.classes[name](parent) if parent is not None else self.classes[name]()
        self.keep(element, made)
        for child in element:
            if child.tag == "layout":
                self.layout(child, made)
            elif child.tag == "widget":
                self.contain(made, self.widget(child, made), child)
            elif child.tag not in ("property", "attribute", "action", "addaction", "row", "column", "item"):
                self.fail(f"<{child.tag}> in a widget is not read")
        self.items(element, made)
        for child in element.iterfind("property"):
            self.property(made, child)
        return made

    def items(self, element, made):
        """Items of a combo box or list, rows and columns of a table: their texts."""
        text = [item.findtext("property[@name='text']/string", "") for item in element.iterfind("item")]
        if text:
            made.addItems(text)
        for tag, count, header in (
            ("column", "setColumnCount", "setHorizontalHeaderLabels"),
            ("row", "setRowCount", "setVerticalHeaderLabels"),
        ):
            labels = [c.findtext("property[@name='text']/string", "") for c in element.iterfind(tag)]
            if labels:
                getattr(made, count)(len(labels))
                getattr(made, header)(labels)

    def contain(self, made, child, element):
        attributes = {a.get("name"): a.findtext("string") for a in element.iterfind("attribute")}
        if isinstance(made, QtWidgets.QTabWidget):
            made.addTab(child, attributes.get("title", ""))
        elif isinstance(made, QtWidgets.QToolBox):
            made.addItem(child, attributes.get("label", ""))
        elif isinstance(made, QtWidgets.QScrollArea):
            made.setWidget(child)
        elif isinstance(made, (QtWidgets.QStackedWidget, QtWidgets.QSplitter)):
            made.addWidget(child)

    def layout(self, element, parent, inner=False):
        if element.get("class") not in LAYOUTS:
            self.fail(f"no layout class '{element.get('class')}'")
        made = getattr(QtWidgets, element.get("class"))(*([] if inner else [parent]))
        self.keep(element, made)
        margins = pythonqt.raw(made, "contentsMargins")()
        sides = [margins.left(), margins.top(), margins.right(), margins.bottom()]
        for prop in element.iterfind("property"):
            if prop.get("name") in _MARGINS:
                sides[_MARGINS.index(prop.get("name"))] = int(prop.findtext("number"))
            else:
                self.property(made, prop)
        made.setContentsMargins(*sides)
        for item in element.iterfind("item"):
            self.item(item, made, parent)
        for index, value in enumerate(filter(None, element.get("stretch", "").split(","))):
            made.setStretch(index, int(value))
        for index, value in enumerate(filter(None, element.get("columnstretch", "").split(","))):
            made.setColumnStretch(index, int(value))
        return made

    def item(self, item, layout, parent):
        child = item[0]
        if child.tag == "widget":
            made, kind = self.widget(child, parent), "Widget"
        elif child.tag == "layout":
            made, kind = self.layout(child, parent, inner=True), "Layout"
        elif child.tag == "spacer":
            made, kind = self.spacer(child), "Item"
        else:
            self.fail(f"<{child.tag}> in a layout is not read")
        place = [int(item.get(k, d)) for k, d in (("row", 0), ("column", 0), ("rowspan", 1), ("colspan", 1))]
        if isinstance(layout, QtWidgets.QGridLayout):
            getattr(layout, f"add{kind}")(made, *place)
        elif isinstance(layout, QtWidgets.QFormLayout):
            roles = QtWidgets.QFormLayout.ItemRole
            role = roles.SpanningRole if place[3] == 2 else (roles.LabelRole, roles.FieldRole)[place[1]]
            getattr(layout, f"set{kind}")(place[0], role, made)
        else:
            getattr(layout, f"add{kind}")(made)

    def spacer(self, element):
        size = element.find("property[@name='sizeHint']/size")
        width, height = (int(size.findtext(tag)) for tag in ("width", "height"))
        vertical = "Vertical" in element.findtext("property[@name='orientation']/enum", "")
        kinds = QtWidgets.QSizePolicy.Policy
        grow, stay = kinds.Expanding, kinds.Minimum
        return QtWidgets.QSpacerItem(width, height, stay if vertical else grow, grow if vertical else stay)

    def property(self, made, element):
        name, value = element.get("name"), self.value(element[0])
        if name == "buddy":
            made.__dict__["_buddy"] = element[0].text
        elif element.get("stdset") == "0":
            made.setProperty(name, value)
        elif name not in pythonqt.members(type(made))[0]:
            self.fail(f"{pythonqt.class_name(made)} '{made.objectName}' has no property '{name}'")
        else:
            pythonqt.write(made, name, value)

    def value(self, element):
        tag, text = element.tag, element.text or ""
        if tag in ("enum", "set"):
            return self.enumeration(text)
        if tag == "stringlist":
            return [s.text or "" for s in element]
        if tag == "size":
            return QtCore.QSize(*(int(element.findtext(t)) for t in ("width", "height")))
        if tag == "rect":
            return QtCore.QRect(*(int(element.findtext(t)) for t in ("x", "y", "width", "height")))
        if tag == "sizepolicy":
            kinds = QtWidgets.QSizePolicy.Policy
            return QtWidgets.QSizePolicy(kinds[element.get("hsizetype")], kinds[element.get("vsizetype")])
        if tag == "font":
            font = QtGui.QFont()
            font.setBold(element.findtext("bold") == "true")
            return font
        if tag == "iconset":
            return QtGui.QIcon(text)
        if tag == "bool" and text not in ("true", "false"):
            self.fail(f"'{text}' is no bool")
        simple = {"string": str, "cstring": str, "number": int, "double": float, "bool": lambda t: t == "true"}
        if tag not in simple:
            self.fail(f"values of kind <{tag}> are not read")
        return simple[tag](text)

    def enumeration(self, text):
        value = None
        for part in text.split("|"):
            where, *names = part.strip().split("::")
            scope = QtCore.Qt if where == "Qt" else self.classes.get(where)
            for name in names:
                scope = getattr(scope, name, None)
            if scope is None:
                self.fail(f"there is no value '{part}'")
            value = scope if value is None else value | scope
        return value
