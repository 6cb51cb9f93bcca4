"""Makes the extension's icon from the module's SVG, and the thumbnails of the sample data from the built-in phantom.

Run it after `make test`, which installs what it needs: `.venv/bin/python Resources/make_icons.py`.
No picture of a patient is used.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib.image import imsave

from DiffDRRCore import CArm, Volume
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRCore.datasets.simulated import simulated_xray

ROOT = Path(__file__).parents[1]
ICONS = ROOT / "DiffDRRSlicer" / "Resources" / "Icons"
EXTENSION_ICON = "DiffDRRSlicer.png"
THUMBNAIL = (280, 260)  # height, width


def main(top: Path = ROOT, icons: Path = ICONS) -> None:
    """Write the extension's icon to one folder, the thumbnails to the other."""
    draw_svg(ICONS / "DiffDRRSlicer.svg", top / EXTENSION_ICON, 128)
    volume = phantom(spacing=2.0)
    for name, image in (("SampleCT.png", coronal_slice(volume)), ("SampleXRay.png", fluoroscopy(volume))):
        imsave(icons / name, image, cmap="gray", vmin=0, vmax=1, metadata={"Software": None})


def draw_svg(source: Path, target: Path, size: int) -> None:
    """Draw an SVG file as a square PNG with a transparent background."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from PySide6.QtGui import QImage, QPainter
    from PySide6.QtSvg import QSvgRenderer

    image = QImage(size, size, QImage.Format.Format_ARGB32)
    image.fill(0)
    painter = QPainter(image)
    QSvgRenderer(str(source)).render(painter)
    painter.end()
    image.save(str(target))


def coronal_slice(volume: Volume) -> np.ndarray:
    """[height, width] grey values 0 to 1: bones of a coronal slice, head up, right side on the left."""
    hu = volume.hu.numpy()
    step = float(volume.ijk_to_ras[0, 0])
    z, x = (np.arange(size) - (size - 1) / 2 for size in THUMBNAIL)
    scale = 340.0 / THUMBNAIL[0]  # mm a pixel
    K, J, I = hu.shape
    row = round((J - 1) / 2 - 16.0 / step)  # through the vertebrae and the hips
    rows = np.clip(np.rint((K - 1) / 2 - z * scale / step), 0, K - 1).astype(int)
    columns = np.rint((I - 1) / 2 - x * scale / step).astype(int)
    window = hu[:, row][np.ix_(rows, np.clip(columns, 0, I - 1))]
    return np.clip((window + 200) / 800, 0, 1)


def fluoroscopy(volume: Volume) -> np.ndarray:
    """[height, width] grey values 0 to 1: a noisy X-ray of a C-arm turned a little, in a round field."""
    arm = CArm(1020, 750, volume.center, primary=15, secondary=-8)
    camera = arm.camera(*THUMBNAIL, (1.3, 1.3), view_from="detector")
    image = simulated_xray(volume, camera, arm.pose, photons=20_000, oversampling=2).image.numpy()
    v, u = (np.arange(size) - (size - 1) / 2 for size in THUMBNAIL)
    inside = v[:, None] ** 2 + u**2 < (0.49 * min(THUMBNAIL)) ** 2
    low, high = np.quantile(image[inside], (0.1, 0.998))
    return np.where(inside, np.clip((image - low) / (high - low), 0, 1), 0.0)


if __name__ == "__main__":
    main()
