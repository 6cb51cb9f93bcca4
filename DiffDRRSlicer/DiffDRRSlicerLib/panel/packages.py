"""What is missing before anything can be rendered, and a button that installs it after asking."""

from __future__ import annotations

from DiffDRRSlicerLib import install
from DiffDRRSlicerLib.panel.section import Section


class PackagesSection(Section):
    """Shown only while Python packages are missing."""

    title = "Before the first use"
    ui_file = "Setup.ui"

    def setup(self) -> None:
        self.click("installButton", self.install, "The packages were not installed.")

    def install(self) -> None:
        """Ask once, install, and go on."""
        install.install()
        self.panel.packages_changed()

    def show_missing(self, missing: list[str]) -> None:
        """Name these packages; without any the section hides."""
        self.button.visible = bool(missing)
        self.ui.setupText.text = (
            f"Python packages are missing: {', '.join(missing)}. They are needed to render and to register; "
            "nothing is installed without your consent."
        )
