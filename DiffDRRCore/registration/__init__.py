"""2D/3D registration: objective, optimisers, levels, landmarks, and the loop that drives them."""

from DiffDRRCore.registration.engine import Registration, register
from DiffDRRCore.registration.global_search import GlobalSearch, SearchResult
from DiffDRRCore.registration.landmarks import LandmarkFit, landmark_residuals, pose_from_landmarks
from DiffDRRCore.registration.problem.bodies import Body, FreeCamera, Joint
from DiffDRRCore.registration.problem.motion import Limits
from DiffDRRCore.registration.problem.options import Landmarks, Options
from DiffDRRCore.registration.result import FoundBody, FoundCamera, RegistrationResult
from DiffDRRCore.registration.step import Step

__all__ = [
    "Body",
    "FoundBody",
    "FoundCamera",
    "FreeCamera",
    "GlobalSearch",
    "Joint",
    "LandmarkFit",
    "Landmarks",
    "Limits",
    "Options",
    "Registration",
    "RegistrationResult",
    "SearchResult",
    "Step",
    "landmark_residuals",
    "pose_from_landmarks",
    "register",
]
