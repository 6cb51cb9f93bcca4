"""Where else a registration could have ended: a list to choose from, and to come back."""

from __future__ import annotations

import slicer

from DiffDRRSlicerLib.panel.section import NotReadyError, fill_table

_MINIMA = ("Answer", "Similarity", "Turn, °", "Shift, mm")


class MinimaPart:
    """The answers of the last registration, where there are several, and a button that goes to one."""

    def __init__(self, section):
        self.section, self.ui = section, section.ui
        self._shown = ()
        section.click("goToMinimumButton", self.go, "The other answer cannot be shown.")

    def go(self) -> None:
        """Move everything to the chosen answer."""
        row, minima = self.ui.minimaTable.currentRow(), self._minima()
        if not 0 <= row < len(minima):
            raise NotReadyError("Choose one of the answers first.")
        self.section.panel.remember("another answer")
        minima[row].apply(slicer.mrmlScene)

    def _minima(self) -> tuple:
        carm, outcome, ct = self.section.panel.carm, self.section.panel.outcome, self.section.panel.parameters.ct
        if carm is None or outcome is None or ct is None or ct.GetID() != outcome.ct_id:
            return ()
        if carm.node.GetID() not in [view.node_id for view in outcome.views]:
            return ()
        return outcome.minima

    def refresh(self) -> None:
        """Show them, where there is more than one."""
        minima = self._minima() if self.section.running is None else ()
        self.ui.minimaTable.visible = self.ui.goToMinimumButton.visible = bool(minima)
        self.ui.goToMinimumButton.enabled = not self.section.panel.running
        if minima != self._shown:
            fill_table(self.ui.minimaTable, _MINIMA, [_row(number, one) for number, one in enumerate(minima)])
            self._shown = minima


def _row(number: int, minimum) -> tuple[str, str, str, str]:
    if minimum.similarity is None:
        return "found", "", "", ""
    return f"other {number}", f"{minimum.similarity:.4f}", f"{minimum.turn:.1f}", f"{minimum.shift:.1f}"
