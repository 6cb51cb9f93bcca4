"""The command line: `python -m DiffDRRCore COMMAND`."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module

from DiffDRRCore import __version__
from DiffDRRCore.errors import DiffDRRError, DiffDRRWarning

COMMANDS = (
    *("render", "simulate", "register", "train", "finetune", "restart", "animate", "evaluate", "convert", "dcm2nii"),
    *("info", "demo", "calibrate", "track", "joints"),
)

_DESCRIPTION = """\
Lay a CT over an X-ray: render simulated X-rays of a CT, and find the C-arm pose under which the CT looks like an X-ray.

Frames and units, everywhere:
  world    the patient's RAS coordinates (x right, y anterior, z superior), in mm
  pose     camera_to_world, a rigid 4 x 4 matrix; the camera has its origin at the X-ray source, x to the right and y
           down in the image as seen from the source, z towards the detector
  pixels   (u, v) = (column, row); (0, 0) is the centre of the first pixel
  angles   degrees; DICOM positioner angles: primary + LAO, secondary + CRA, both 0 = beam from posterior to anterior
  image    line integral of the linear attenuation (1/mm) along each ray: no unit, never normalised
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, as the commands do, without the usage before it."""

    def error(self, message: str):
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0; what the command's `run` returns (1: it worked, but nothing came out); 2 for bad input (one line on standard
    error); 130 when interrupted.
    """
    parser = build_parser()
    chosen = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", DiffDRRWarning)
            warnings.showwarning = _showing_once()
            code = import_module(f"DiffDRRCore.cli.{chosen.command}").run(chosen)
        sys.stdout.flush()
        return code or 0
    except DiffDRRError as error:
        print(f"{parser.prog} {chosen.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has read enough; nothing more may go to that pipe, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stop:
        print(f"{parser.prog} {chosen.command}: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = _Parser(prog="DiffDRRCore", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"DiffDRRCore {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f"DiffDRRCore.cli.{name}")
        summary = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
    return parser


def _showing_once() -> Callable[..., None]:
    """One plain line for our own warnings, each once a command (what is checked and then used warns twice); others as
    Python shows them."""
    shown: set[str] = set()

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        if issubclass(category, DiffDRRWarning):
            text = f"warning: {message}\n"
            if text in shown:
                return
            shown.add(text)
        print(text, end="", file=sys.stderr)

    return show
