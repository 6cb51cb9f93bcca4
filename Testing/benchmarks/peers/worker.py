"""A worker of the peers' environment: `python -m Testing.benchmarks.peers.worker ENGINE SCENE THREADS`.

Reads requests {"task": name of the engine's method, "arguments": {...}}, one JSON line each, from standard input and
answers each with one line on standard output: what the method returns, or {"error": one sentence}.
"""

import importlib
import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Load the engine and its volume, say so, and answer until the input ends."""
    name, scene, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    answers = _keep_stdout_clean()
    engine = importlib.import_module(f"Testing.benchmarks.peers.{name}").Engine(scene, threads)
    _say(answers, {"ready": name})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(engine, request["task"])(**request["arguments"])
        except Exception as error:  # one failure is one line of the report, not the end of the run
            answer = {"error": (str(error).strip() or repr(error)).splitlines()[0]}
        _say(answers, answer)


def _keep_stdout_clean():
    """A private copy of standard output; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _say(answers, answer: dict) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
