"""PythonQt's rules over PySide6: properties are attributes, signals connect by C++ signature, mistakes raise."""

from __future__ import annotations

import functools
import inspect

from PySide6 import QtCore, QtGui, QtWidgets

_originals: dict[tuple[type, str], object] = {}  # what patch() replaced


@functools.cache
def _getter(cls):
    """PySide6's own attribute look-up of a class; QFile, QMenu and a few more have one of their own."""
    return next(
        _originals[base, "__getattribute__"] for base in cls.__mro__ if (base, "__getattribute__") in _originals
    )


def raw(owner, name):
    return _getter(type(owner))(owner, name)


_SIGNAL, _SLOT = QtCore.QMetaMethod.MethodType.Signal, QtCore.QMetaMethod.MethodType.Slot
_QT6_ONLY = ("contentsMargins",)  # a method in Qt 5, a property in Qt 6: neither spelling works in both
_reading: set[tuple[int, str]] = set()
errors: list[BaseException] = []  # what slots raised and no message showed; PythonQt prints it and goes on

_ACCEPTED = {  # C++ type of a property -> Python types taken for it
    "bool": (bool, int),
    "int": (int,),
    "uint": (int,),
    "double": (int, float),
    "float": (int, float),
    "QString": (str,),
    "QStringList": (list, tuple),
    "QColor": (QtGui.QColor,),
    "QIcon": (QtGui.QIcon,),
}


def cpp(cls):
    """Mark a class of the stand-in as one that is written in C++ in Slicer: no attributes can be added from outside."""
    cls._is_cpp = True
    return cls


@functools.cache
def members(cls) -> tuple[dict, dict, dict]:
    """Properties {name: QMetaProperty}, signals {signature: attribute}, slots {signature: method name} of a class."""
    meta = cls.staticMetaObject
    properties = {meta.property(i).name(): meta.property(i) for i in range(meta.propertyCount())}
    signals, slots = {}, {}
    for i in range(meta.methodCount()):
        method = meta.method(i)
        signature, name = method.methodSignature().data().decode(), method.name().data().decode()
        if method.methodType() == _SIGNAL:
            signals[signature] = name
        elif method.methodType() == _SLOT and method.access() != QtCore.QMetaMethod.Access.Private:
            slots[signature] = name
    for base in reversed(cls.__mro__):
        own_signals = base.__dict__.get("_signals", {})
        names = set(own_signals.values())
        signals = {s: n for s, n in signals.items() if n not in names} | own_signals
        slots |= {s: s.split("(")[0] for s in base.__dict__.get("_slots", ())}
    return properties, signals, slots


@functools.cache
def _names(cls) -> tuple[set, set]:
    _, signals, slots = members(cls)
    return {s.split("(")[0] for s in signals}, set(slots.values())


def plain(value):
    """A value as PythonQt hands it over: lists become tuples."""
    return tuple(value) if isinstance(value, list) else value


class BoundSignal:
    """`widget.clicked`: connect, disconnect, or call it to emit. There is no emit()."""

    def __init__(self, owner, name):
        self._owner, self._name = owner, name

    def _signature(self):
        signals = members(type(self._owner))[1]
        return next(s for s in signals if s.split("(")[0] == self._name)

    def connect(self, *target):
        return connect(self._owner, self._signature(), *target)

    def disconnect(self, *target):
        return disconnect(self._owner, self._signature(), *target)

    def __call__(self, *arguments):
        signals = members(type(self._owner))[1]
        raw(self._owner, signals[self._signature()]).emit(*arguments)


def _parameters(callable_) -> int | None:
    """How many positional arguments a slot takes (None: any number)."""
    try:
        parameters = inspect.signature(callable_).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def was_shown(error) -> bool:
    """Whether the user has seen the error in a message; set by install()."""
    return False


def guarded(callable_, count=None):
    """A slot that gets at most `count` arguments and whose exception is kept in `errors`."""
    takes = _parameters(callable_)

    def call(*arguments):
        try:
            callable_(*arguments[: count if takes is None else min(takes, count or 0)])
        except Exception as error:
            if not was_shown(error):
                errors.append(error)

    return call


def _signal(owner, signature):
    signals = members(type(owner))[1]
    normal = QtCore.QMetaObject.normalizedSignature(signature).data().decode()
    if normal not in signals:
        known = sorted(s for s in signals if s.split("(")[0] == normal.split("(")[0]) or sorted(signals)
        raise ValueError(f"{class_name(owner)} has no signal '{signature}'; it has {', '.join(known)}")
    signal = raw(owner, signals[normal])
    own = any(normal in base.__dict__.get("_signals", ()) for base in type(owner).__mro__)
    return normal, signal if own or not _count(normal) else signal[normal[normal.index("(") + 1 : -1]]


def _count(signature):
    inside = signature[signature.index("(") + 1 : -1]
    return inside.count(",") + 1 if inside else 0


def _slot(target):
    if len(target) == 1:
        if not callable(target[0]):
            raise TypeError(f"{target[0]!r} cannot be called")
        return target[0], None
    receiver, slot = target
    normal = QtCore.QMetaObject.normalizedSignature(slot).data().decode()
    _, signals, slots = members(type(receiver))
    if normal not in slots | signals:
        raise ValueError(f"{class_name(receiver)} has no slot '{slot}'")
    return getattr(receiver, normal.split("(")[0]), _count(normal)


def connect(owner, signature, *target):
    """Connect a signal, named by its C++ signature, to a callable or to (object, "slot()"); a wrong name raises."""
    normal, signal = _signal(owner, signature)
    slot, slot_count = _slot(target)
    count = _count(normal)
    if slot_count is not None and slot_count > count:
        raise ValueError(f"'{target[1]}' wants more arguments than '{signature}' gives")
    relay = guarded(slot, count if slot_count is None else slot_count)
    signal.connect(relay)
    owner.__dict__.setdefault("_connections", []).append((normal, slot, signal, relay))
    return True


def disconnect(owner, signature, *target):
    """Undo connect: with the same target, or all of a signal's connections; a target never connected raises."""
    normal, _ = _signal(owner, signature)
    slot = _slot(target)[0] if target else None
    kept, gone = [], []
    for connection in owner.__dict__.get("_connections", []):
        match = connection[0] == normal and (slot is None or connection[1] == slot)
        (gone if match else kept).append(connection)
    if not gone and slot is not None:
        raise ValueError(f"'{signature}' of {class_name(owner)} was not connected to {slot}")
    for _, _, signal, relay in gone:
        signal.disconnect(relay)
    owner.__dict__["_connections"] = kept
    return True


def class_name(owner) -> str:
    return raw(owner, "metaObject")().className()


def read(owner, name):
    """The value of a Q_PROPERTY."""
    # PySide6 looks for an override of a virtual getter by its name, while it reads: that look-up must not read again.
    key = (id(owner), name)
    _reading.add(key)
    try:
        return plain(raw(owner, "property")(name))
    finally:
        _reading.discard(key)


def write(owner, name, value) -> None:
    """Set a Q_PROPERTY; a value of another type, or a property without setter, raises."""
    prop = members(type(owner))[0][name]
    accepted = _ACCEPTED.get(prop.typeName())
    if not prop.isWritable():
        raise AttributeError(f"Property '{name}' of {class_name(owner)} is not writable")
    if accepted and not isinstance(value, accepted):
        raise AttributeError(
            f"Property '{name}' of type '{prop.typeName()}' does not accept {type(value).__name__} ({value!r})"
        )
    if prop.typeName() == "QStringList" and not all(isinstance(v, str) for v in value):
        raise AttributeError(f"Property '{name}' wants strings, got {value!r}")
    value = bool(value) if prop.typeName() == "bool" else list(value) if isinstance(value, tuple) else value
    if not prop.write(owner, value):
        raise AttributeError(f"Property '{name}' of type '{prop.typeName()}' does not accept {value!r}")


def _getattribute(self, name):
    if name.startswith("__") or (_reading and (id(self), name) in _reading):
        return raw(self, name)
    cls = type(self)
    if name == "name":
        return read(self, "objectName")
    if name in members(cls)[0] and name not in _QT6_ONLY:
        return read(self, name)
    if name in _names(cls)[0]:
        return BoundSignal(self, name)
    if name in _QT6_ONLY:
        raise AttributeError(f"'{name}' is a method in Qt 5 and a property in Qt 6: use neither")
    if name == "exec":
        raise AttributeError(f"{cls.__name__} has no attribute named 'exec'; it is exec_")
    if name in _EXTRA:
        return functools.partial(_EXTRA[name], self)
    return raw(self, name)


def _setattr(self, name, value):
    cls = type(self)
    if name == "name":
        name = "objectName"
    if name in members(cls)[0]:
        return write(self, name, value)
    signals, slots = _names(cls)
    if name in signals or name in slots:
        raise AttributeError(f"'{name}' can not be overwritten on {cls.__name__}")
    is_cpp = cls.__module__.startswith("PySide6.") or "_is_cpp" in cls.__dict__
    if is_cpp and not (name.startswith("_") and "_is_cpp" in cls.__dict__):
        raise AttributeError(f"'{name}' does not exist on {cls.__name__}; attributes cannot be added to C++ objects")
    inherited = inspect.getattr_static(cls, name, None)
    if hasattr(type(inherited), "__set__"):
        return inherited.__set__(self, value)
    raw(self, "__dict__")[name] = value
    return None


def _connect_any(self, signature, *target):
    return connect(self, signature, *target)


def _disconnect_any(self, signature, *target):
    return disconnect(self, signature, *target)


_EXTRA = {"connect": _connect_any, "disconnect": _disconnect_any, "className": class_name}


_PATCHES = {"__getattribute__": _getattribute, "__setattr__": _setattr}


def patch() -> None:
    """From now on every QObject of this process behaves as in PythonQt."""
    for cls in classes().values():
        for name in _PATCHES:
            if issubclass(cls, QtCore.QObject) and name in cls.__dict__:
                _originals[cls, name] = cls.__dict__[name]
    for cls, name in _originals:
        setattr(cls, name, _PATCHES[name])


def unpatch() -> None:
    """Every QObject of this process behaves as in PySide6 again."""
    for (cls, name), original in _originals.items():
        setattr(cls, name, original)
    _originals.clear()
    _getter.cache_clear()


def classes() -> dict:
    """All Qt classes by name, flat as in PythonQt."""
    found = {}
    for module in (QtCore, QtGui, QtWidgets):
        values = {name: getattr(module, name) for name in dir(module) if name[0] == "Q"}
        found |= {name: value for name, value in values.items() if isinstance(value, type)}
    return found | {"Qt": QtCore.Qt}
