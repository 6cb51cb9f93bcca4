"""A double of slicer.parameterNodeWrapper: typed attributes of a vtkMRMLScriptedModuleNode, bound to widgets."""

from __future__ import annotations

import ast
import enum
import pathlib
import typing
import weakref

import slicer
import vtk

from .gui_connectors import create_connector

_PATHS = (pathlib.Path, pathlib.PurePath)


class Default:
    def __init__(self, value=None, *, generator=None):
        self._value, self._generator = value, generator

    @property
    def value(self):
        return self._generator() if self._generator else self._value


class Validator:
    def validate(self, value):
        raise NotImplementedError


class _Bounds(Validator):
    minimum, maximum = float("-inf"), float("inf")

    def validate(self, value):
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{value} must be within [{self.minimum}, {self.maximum}]")


class WithinRange(_Bounds):
    def __init__(self, minimum, maximum):
        self.minimum, self.maximum = minimum, maximum


class Minimum(_Bounds):
    def __init__(self, minimum):
        self.minimum = minimum


class Maximum(_Bounds):
    def __init__(self, maximum):
        self.maximum = maximum


class Choice(Validator):
    def __init__(self, choices):
        self.choices = choices

    def validate(self, value):
        if value not in self.choices:
            raise ValueError(f"{value!r} must be one of {self.choices}")


class Exclude(Validator):
    def __init__(self, values):
        self.values = values

    def validate(self, value):
        if value in self.values:
            raise ValueError(f"{value!r} must not be one of {self.values}")


class NotNone(Validator):
    def validate(self, value):
        if value is None:
            raise ValueError("None is not allowed")


class Decimals:
    def __init__(self, value):
        self.value = value


class SingleStep(Decimals):
    pass


def is_node(kind) -> bool:
    return isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode)


def node_kinds(kind) -> tuple:
    """The node classes of a node type or of a Union/Optional of node types; () for other types.

    A union written with | is kept by Slicer, but its selectors do not connect to it, and older versions refuse it.
    """
    if is_node(kind):
        return (kind,)
    if typing.get_origin(kind) is typing.Union:
        members = [m for m in typing.get_args(kind) if m is not type(None)]
        if all(is_node(m) for m in members):
            return tuple(members)
    return ()


def _is_enum(kind) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


class Parameter:
    """One typed attribute: what it accepts and how it is written as text or as a node reference."""

    def __init__(self, name, hint, default):
        self.name, self.hint = name, hint
        arguments = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
        self.kind, self.annotations = arguments[0], arguments[1:]
        self.nodes = node_kinds(self.kind)
        self.of = typing.get_args(self.kind)[0] if typing.get_origin(self.kind) is list else None
        if (
            not self.nodes
            and (self.of or self.kind) not in (int, float, str, bool, *_PATHS)
            and not _is_enum(self.kind)
        ):
            raise TypeError(f"Unable to create serializer for member {name}: {hint}")
        given = [a for a in self.annotations if isinstance(a, Default)]
        self._default = default if default is not None else (given[0] if given else Default(generator=self._zero))

    def default(self):
        return self._default.value

    def _zero(self):
        if self.nodes:
            return None
        if _is_enum(self.kind):
            return next(iter(self.kind))
        return [] if self.of else self.kind()

    def check(self, value):
        kind = self.nodes or (list if self.of else self.kind)
        kinds = (int, float) if kind is float else kind
        if value is None and self.nodes:
            accepted = is_node(self.kind) or type(None) in typing.get_args(self.kind)
        elif kind is not bool and isinstance(value, bool) and kind in (int, float):
            accepted = True  # a bool is an int in Python
        else:
            accepted = isinstance(value, kinds)
        if accepted and self.of:
            accepted = all(isinstance(item, (int, float) if self.of is float else self.of) for item in value)
        if not accepted:
            raise TypeError(f"{self.name} must be of type {self.hint}, is {type(value).__name__} {value!r}")
        for validator in self.annotations:
            if isinstance(validator, Validator) and not (value is None and isinstance(validator, _Bounds)):
                validator.validate(value)

    def write(self, node, value):
        self.check(value)
        if self.nodes:
            node.SetParameter(self.name, "")
            node.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)
        elif self.of:
            node.SetParameter(self.name, repr(value))
        else:
            node.SetParameter(self.name, value.name if _is_enum(self.kind) else str(value))

    def read(self, node):
        if not node.HasParameter(self.name):
            self.write(node, self.default())
        if self.nodes:
            return node.GetNodeReference(self.name)
        text = node.GetParameter(self.name)
        if _is_enum(self.kind):
            return self.kind[text]
        if self.kind is bool:
            return text == "True"
        if self.of:
            return _BoundList(self, node, ast.literal_eval(text))
        return self.kind(text)


class _BoundList(list):
    """A list parameter: changing it in place writes it back."""

    def __init__(self, parameter, node, values):
        super().__init__(values)
        self._parameter, self._node = parameter, node


def _writing(name):
    def method(self, *arguments):
        values = list(self)
        result = getattr(values, name)(*arguments)
        self._parameter.write(self._node, values)
        getattr(list, name)(self, *arguments)
        return result

    return method


for _name in ("append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse", "__setitem__", "__delitem__"):
    setattr(_BoundList, _name, _writing(_name))


def _property(name):
    def get(self):
        return self.getValue(name)

    def set_(self, value):
        self.setValue(name, value)

    return property(get, set_)


class _Wrapper:
    """Methods of a wrapped parameter node."""

    _OWN = ("parameterNode", "_guis", "_writing_gui", "_cache", "_tag")

    def __init__(self, parameterNode, prefix=None):
        if prefix is not None:
            raise NotImplementedError("the stand-in has no prefixes")
        if not isinstance(parameterNode, slicer.vtkMRMLScriptedModuleNode):
            raise TypeError("a vtkMRMLScriptedModuleNode is wanted")
        self.parameterNode, self._guis, self._writing_gui, self._tag = parameterNode, {}, False, None
        for parameter in self.allParameters.values():
            if not parameterNode.HasParameter(parameter.name):
                parameter.write(parameterNode, parameter.default())
        self._cache, me = {}, weakref.ref(self)
        self._read()
        self._tag = parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: me() and me()._read())

    def __del__(self):
        if self.__dict__.get("_tag") is not None:
            self.parameterNode.RemoveObserver(self._tag)

    def _read(self):
        """As Slicer's wrapper, values are kept until the node is modified: a node that comes later is not seen."""
        parameters = [parameter for parameter in self.allParameters.values() if self.isCached(parameter.name)]
        self._cache = {parameter.name: parameter.read(self.parameterNode) for parameter in parameters}

    def __setattr__(self, name, value):
        # Slicer would keep it quietly as a Python attribute that is not saved; here it is a mistake.
        if name not in self.allParameters and name not in self._OWN:
            raise AttributeError(f"{type(self).__name__} has no parameter '{name}'")
        object.__setattr__(self, name, value)

    def _parameter(self, name):
        if name not in self.allParameters:
            raise ValueError(f"Cannot find a parameter named {name}; there are {sorted(self.allParameters)}")
        return self.allParameters[name]

    def getValue(self, name):
        parameter = self._parameter(name)
        return self._cache[name] if self.isCached(name) else parameter.read(self.parameterNode)

    def setValue(self, name, value):
        parameter = self._parameter(name)
        with slicer.util.NodeModify(self.parameterNode):
            parameter.write(self.parameterNode, value)
            if self.isCached(name):
                self._cache[name] = parameter.read(self.parameterNode)

    def default(self, name):
        return Default(self._parameter(name).default())

    @classmethod
    def dataType(cls, name):
        return cls.allParameters[name].hint

    def isCached(self, name):
        return not self._parameter(name).of  # lists are read each time

    def connectGui(self, gui):
        """Bind the widgets whose dynamic property SlicerParameterName names a parameter; returns a tag."""
        widgets = gui.findChildren(_widget_class()) if hasattr(gui, "findChildren") else gui.__dict__.values()
        named = {w.property("SlicerParameterName"): w for w in widgets if w.property("SlicerParameterName")}
        return self.connectParametersToGui(named)

    def connectParametersToGui(self, mapping):
        connectors = {name: create_connector(widget, self._parameter(name)) for name, widget in mapping.items()}
        me = weakref.ref(self)
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.connect(_relay(me, name, connector))
        tag = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._to_gui())
        self._guis[tag] = connectors
        return tag

    def _from_gui(self, name, connector):
        if not self._writing_gui:
            self.setValue(name, connector.read())

    def _to_gui(self):
        if self._writing_gui:
            return
        self._writing_gui = True
        try:
            with slicer.util.NodeModify(self.parameterNode):
                for connectors in self._guis.values():
                    for name, connector in connectors.items():
                        connector.write(self.getValue(name))
        finally:
            self._writing_gui = False

    def disconnectGui(self, tag):
        for connector in self._guis.pop(tag, {}).values():
            connector.disconnect()
        if tag is not None:
            self.RemoveObserver(tag)

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, was_modified):
        return self.parameterNode.EndModify(was_modified)

    def AddObserver(self, event, callback, priority=0.0):
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag):
        self.parameterNode.RemoveObserver(tag)

    def Modified(self):
        self.parameterNode.Modified()


def _relay(wrapper, name, connector):
    def changed():
        if wrapper() is not None:
            wrapper()._from_gui(name, connector)

    return changed


def _widget_class():
    from PySide6 import QtWidgets

    return QtWidgets.QWidget


def parameterNodeWrapper(cls=None):
    """Class decorator; the hints of the class become typed parameters."""
    if cls is None:
        return parameterNodeWrapper
    parameters = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if hasattr(_Wrapper, name):
            raise ValueError(f"Cannot use reserved name '{name}' in a parameterNodeWrapper")
        default = Default(getattr(cls, name)) if hasattr(cls, name) else None
        parameters[name] = Parameter(name, hint, default)
        setattr(cls, name, _property(name))
    cls.allParameters = parameters
    for name, value in vars(_Wrapper).items():
        if name not in ("__dict__", "__weakref__", "__module__", "__doc__", "__qualname__"):
            setattr(cls, name, value)
    cls._is_parameter_node_wrapper = True
    return cls


NAMES = (parameterNodeWrapper, Default, Validator, WithinRange, Minimum, Maximum, Choice, Exclude, NotNone)
NAMES += (Decimals, SingleStep)
