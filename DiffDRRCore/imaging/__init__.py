"""Volumes and X-rays: reading, preprocessing, writing."""

from DiffDRRCore.imaging.attenuation import AttenuationMap
from DiffDRRCore.imaging.preprocessing import preprocess
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay

__all__ = ["AttenuationMap", "Volume", "XRay", "preprocess"]
