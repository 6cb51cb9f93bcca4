"""A peer's worker process: started once, then asked by JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from Testing.benchmarks.peers import environment


class PeerError(Exception):
    """A peer that could not do what it was asked; the message is one line for the report."""


class Peer:
    """The worker of one engine with the scene's volume loaded.

    Args:
        name: one of `environment.RECIPES`.
        scene: folder with the volume's file; the worker's messages go to `name`.log there.
        threads: of the engine.
    """

    def __init__(self, name: str, scene: Path, threads: int):
        self.name, self._log = name, scene / f"{name}.log"
        command = [str(environment.python()), "-m", "Testing.benchmarks.peers.worker", name, str(scene), str(threads)]
        variables = dict(os.environ, OMP_NUM_THREADS=str(threads), ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=str(threads))
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                cwd=environment.REPOSITORY,
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._answer()

    def ask(self, task: str, **arguments) -> dict:
        """The worker's answer to one request. Raises PeerError where it fails."""
        try:
            self._process.stdin.write(json.dumps({"task": task, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise PeerError(self._last_words()) from error
        return self._answer()

    def close(self) -> None:
        """End the worker."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(f"failed: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"failed: {lines[-1][:200] if lines else 'the worker ended without a word'}"


def open_peers(names: list[str], scene: Path, threads: int) -> tuple[dict[str, Peer], dict[str, str]]:
    """The workers that start, and for each that does not the reason in one line."""
    failed = environment.install(names)
    peers = {}
    for name in names:
        if name not in failed:
            try:
                peers[name] = Peer(name, scene, threads)
            except PeerError as error:
                failed[name] = str(error)
    return peers, failed
