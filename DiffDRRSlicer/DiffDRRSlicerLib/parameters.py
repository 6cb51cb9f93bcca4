"""The user's choices, kept in the scene's parameter node."""

# ruff: noqa: N815, UP007  (Slicer's naming, and its wrapper knows optional nodes by Union)

from typing import Annotated, Union

from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLLinearTransformNode,
    vtkMRMLMarkupsClosedCurveNode,
    vtkMRMLMarkupsFiducialNode,
    vtkMRMLMarkupsROINode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLSequenceNode,
)
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

from DiffDRRSlicerLib.choices import (
    Backbone,
    BodySide,
    Detail,
    Device,
    Distortion,
    Moves,
    NetworkSize,
    Overlay,
    Preset,
    Processor,
    Scatter,
    Side,
    Similarity,
    SweepAngle,
    Tint,
)


@parameterNodeWrapper
class DiffDRRSlicerParameterNode:
    """The user's choices, saved with the scene. Poses and cameras are in the C-arms' own nodes.

    ct, labels: the patient.  carm: the C-arm in use.  structures: names to render, none is all.
    overlayMode to detail: how it is drawn.  fiducials: CT points that are projected.  ctLandmarks: those paired
    with the X-ray's.  preset to reference: the registration.  showErrors, showBoneHandles: of bones, which are nodes
    of their own.  trackImages to trackSmooth: the tracking (frames from 0; -1 is the last).  trackProximal to
    trackDistalPoints: two bones by name, and the points of their axes, for the joint angles.
    kvp to sweepCount: simulated X-rays (mm, uGy, degrees; a negative seed is another one each time).
    trainPrimary to trainingFolder: the training of a network (degrees, mm), and the folder of the one that was started
    last.  networkFile to findCandidates: finding the pose with a network; networkWarp takes the CT to the template.
    phantomFile to calibratePlace: the calibration (mm, pixels; 0 is what the X-rays say, or next to free).
    """

    ct: vtkMRMLScalarVolumeNode
    labels: Union[vtkMRMLLabelMapVolumeNode, vtkMRMLSegmentationNode, None]
    carm: vtkMRMLLinearTransformNode
    structures: list[str]

    overlayMode: Overlay = Overlay.BLEND
    overlayOpacity: Annotated[float, WithinRange(0, 1)] = 0.5
    tint: Tint = Tint.ORANGE
    edgeStrength: Annotated[float, WithinRange(0.02, 0.9)] = 0.2
    squares: Annotated[float, WithinRange(2, 32)] = 8
    displaySide: Side = Side.RADIOLOGICAL
    detail: Detail = Detail.MEDIUM
    showBone: bool = False
    showFrustum: bool = True
    showDetector: bool = True
    showHandles: bool = False
    showRays: bool = False
    showEpipolar: bool = False
    showSegmentation: bool = True
    fiducials: vtkMRMLMarkupsFiducialNode
    ctLandmarks: vtkMRMLMarkupsFiducialNode

    preset: Preset = Preset.FAST
    similarity: Similarity = Similarity.AUTOMATIC
    region: Union[vtkMRMLMarkupsROINode, vtkMRMLMarkupsClosedCurveNode, None]
    findCollimator: bool = True
    useLandmarks: bool = False
    moves: Moves = Moves.CARM
    reference: vtkMRMLLinearTransformNode
    showErrors: bool = False
    showBoneHandles: bool = False

    trackImages: Union[vtkMRMLSequenceNode, vtkMRMLScalarVolumeNode, None]
    trackFirst: Annotated[float, WithinRange(0, 99999)] = 0
    trackLast: Annotated[float, WithinRange(-1, 99999)] = -1
    trackStep: Annotated[float, WithinRange(1, 1000)] = 1
    trackSmooth: bool = True
    trackProximal: str
    trackDistal: str
    trackSide: BodySide = BodySide.RIGHT
    trackProximalPoints: vtkMRMLMarkupsFiducialNode
    trackDistalPoints: vtkMRMLMarkupsFiducialNode

    kvp: Annotated[float, WithinRange(40, 150)] = 80
    aluminium: Annotated[float, WithinRange(0, 20)] = 3
    copper: Annotated[float, WithinRange(0, 2)] = 0
    dose: Annotated[float, WithinRange(0.01, 1000)] = 5
    noise: bool = True
    seed: Annotated[float, WithinRange(-1, 9999)] = -1
    focalSpot: Annotated[float, WithinRange(0, 2)] = 0.6
    detectorBlur: bool = True
    heel: bool = False
    logarithm: bool = True
    scatter: Scatter = Scatter.NONE
    bladeTop: Annotated[float, WithinRange(0, 500)] = 0
    bladeBottom: Annotated[float, WithinRange(0, 500)] = 0
    bladeLeft: Annotated[float, WithinRange(0, 500)] = 0
    bladeRight: Annotated[float, WithinRange(0, 500)] = 0
    raysPerPixel: Annotated[float, WithinRange(1, 4)] = 1
    exactNoise: bool = False
    device: Device = Device.OWN
    deviceSize: Detail = Detail.MEDIUM
    segmentXRay: bool = False
    sweepAngle: SweepAngle = SweepAngle.PRIMARY
    sweepFrom: Annotated[float, WithinRange(-360, 360)] = -45
    sweepTo: Annotated[float, WithinRange(-360, 360)] = 45
    sweepCount: Annotated[float, WithinRange(1, 1000)] = 31

    trainPrimary: Annotated[float, WithinRange(0, 180)] = 30
    trainSecondary: Annotated[float, WithinRange(0, 90)] = 20
    trainRoll: Annotated[float, WithinRange(0, 180)] = 10
    trainShift: Annotated[float, WithinRange(0, 300)] = 30
    trainDepth: Annotated[float, WithinRange(0, 500)] = 50
    trainSteps: Annotated[float, WithinRange(1, 1000000)] = 1000
    trainSize: NetworkSize = NetworkSize.MEDIUM
    trainBatch: Annotated[float, WithinRange(1, 1024)] = 16
    trainNetwork: Backbone = Backbone.RESNET18
    trainDevice: Processor = Processor.AUTO
    trainStructures: bool = False
    trainingFolder: str
    networkFile: str
    networkWarp: vtkMRMLLinearTransformNode
    findRefine: bool = True
    findCandidates: bool = True

    phantomFile: str
    phantomPoints: vtkMRMLMarkupsFiducialNode
    beadRadius: Annotated[float, WithinRange(0.1, 20)] = 1
    calibrateDistance: Annotated[float, WithinRange(0, 3000)] = 0
    calibratePixel: Annotated[float, WithinRange(0, 5)] = 0
    freeDistance: bool = True
    freePoint: bool = True
    freePixel: bool = False
    freeRatio: bool = False
    priorDistance: Annotated[float, WithinRange(0, 1000)] = 0
    priorPoint: Annotated[float, WithinRange(0, 1000)] = 0
    priorPixel: Annotated[float, WithinRange(0, 1)] = 0
    priorRatio: Annotated[float, WithinRange(0, 1)] = 0
    priorDistortion: Annotated[float, WithinRange(0, 100)] = 0
    distortion: Distortion = Distortion.NONE
    gridCells: Annotated[float, WithinRange(1, 20)] = 5
    beadsFrom: Annotated[float, WithinRange(0, 200)] = 0
    beadsTo: Annotated[float, WithinRange(0, 200)] = 0
    showBeads: bool = True
    calibratePlace: bool = False
