"""What the user chooses by name. The parameter node saves the names in capitals: renaming one breaks old scenes."""

from __future__ import annotations

import enum


class Choice(enum.Enum):
    """A choice whose value is what the panel shows."""

    def label(self) -> str:
        """The text in a combo box."""
        return self.value


class Overlay(Choice):
    """How the DRR is drawn over the X-ray."""

    BLEND = "Blend"
    CHECKERBOARD = "Checkerboard"
    EDGES = "Outline"
    DIFFERENCE = "Difference"


class Tint(Choice):
    """Colour of what is drawn over the X-ray."""

    GREY = "Grey"
    YELLOW = "Yellow"
    ORANGE = "Orange"
    RED = "Red"
    MAGENTA = "Magenta"
    CYAN = "Cyan"
    GREEN = "Green"


class Detail(Choice):
    """Longest side of the DRR in pixels when nothing moves; never more than the X-ray's own."""

    LOW = "256"
    MEDIUM = "512"
    HIGH = "1024"


class Side(Choice):
    """From where the X-ray view looks at the image."""

    RADIOLOGICAL = "the detector (radiological)"
    SOURCE = "the source"


class Preset(Choice):
    """How thoroughly a registration searches."""

    FAST = "Fast"
    ACCURATE = "Accurate"
    FAR = "From far away"


class Moves(Choice):
    """What a registration moves."""

    CARM = "the C-arm"
    PATIENT = "the patient"
    BODIES = "the bones alone"


class BodySide(Choice):
    """Of the patient: abduction and external rotation are positive on both. Values as of the library's `Side`."""

    RIGHT = "right"
    LEFT = "left"


class Rest(Choice):
    """What all that is in no bone does; `key` is the name that `scene.bodies` has for it."""

    STAYS = "stays with the CT"
    FIRST = "moves with the first bone"
    LEFT_OUT = "is left out"

    @property
    def key(self) -> str:
        """As `scene.bodies.RESTS` has it."""
        return self.name.lower().replace("_", " ")


class Similarity(Choice):
    """Measures of likeness, by the names of `DiffDRRCore.similarity`; the preset has one of its own."""

    AUTOMATIC = "automatic"
    ZNCC = "zncc"
    LNCC = "lncc"
    MULTISCALE_NCC = "multiscale_ncc"
    GRADIENT_NCC = "gradient_ncc"
    GRADIENT_CORRELATION = "gradient_correlation"
    GRADIENT_ORIENTATION = "gradient_orientation"
    MUTUAL_INFORMATION = "mutual_information"
    SSD = "ssd"


class Scatter(Choice):
    """Scattered radiation in simulated X-rays."""

    NONE = "none"
    WITHOUT_GRID = "without a grid"
    WITH_GRID = "with an anti-scatter grid"


class Device(Choice):
    """Whose geometry a simulated X-ray has: the C-arm's own, or a device of `DiffDRRCore.physics.devices`."""

    OWN = "the C-arm's own"
    CIOS = "Cios, flat panel 30 x 30 cm"
    MOBILE_9IN = "mobile C-arm, 9 inch"
    MOBILE_12IN = "mobile C-arm, 12 inch"
    ANGIOGRAPHY_FRONTAL = "angiography, frontal plane"
    ANGIOGRAPHY_LATERAL = "angiography, lateral plane"
    CARDIAC_FRONTAL = "cardiac angiography, frontal plane"
    RADIOGRAPHY_TABLE = "radiography, table"
    RADIOGRAPHY_CHEST = "radiography, chest stand"

    @property
    def key(self) -> str | None:
        """The device's key in the table; None for the C-arm's own."""
        return None if self is Device.OWN else self.name.lower().replace("_", "-")


class SweepAngle(Choice):
    """What turns in a simulated sweep, by the names of `DiffDRRCore.CArm`."""

    PRIMARY = "LAO / RAO"
    SECONDARY = "cranial / caudal"


class Backbone(Choice):
    """Networks that can be trained; `key` is the name in `DiffDRRCore.learning`."""

    RESNET10 = "ResNet-10"
    RESNET18 = "ResNet-18"
    RESNET34 = "ResNet-34"
    EFFICIENTNET_B0 = "EfficientNet-B0"

    @property
    def key(self) -> str:
        """As the training's options call it."""
        return self.name.lower().replace("_", "-")


class NetworkSize(Choice):
    """Longest side in pixels of the images that a network sees."""

    SMALL = "64"
    MEDIUM = "128"
    LARGE = "256"


class Processor(Choice):
    """Where a network is trained, by the names that the training takes."""

    AUTO = "Automatic"
    CPU = "Processor"
    CUDA = "Graphics card"


class Distortion(Choice):
    """Distortions of an image that a calibration can find; `key` is the name that `scene.calibration` takes."""

    NONE = "none"
    RADIAL = "radial"
    TANGENTIAL = "radial and tangential"
    GRID = "smooth grid"

    @property
    def key(self) -> str | None:
        """None for none."""
        return None if self is Distortion.NONE else self.name.lower()
