"""Builds the environment of the packages that cannot share ours, and runs the tests of their integrations in it.

    python tests/integrations/run.py [--where-possible] [pytest arguments]

litellm[proxy], nemoguardrails, gradio and garak want openai 2 and huggingface-hub 1, where the main environment has
openai 3 and huggingface-hub 2. Among each other they agree, so they share one environment, `.venv-integrations` beside
the main one; it is built again when `requirements.txt` changes, in about two minutes. That file is what
`uv pip compile` makes of those four, pytest and pytest-asyncio, less torch and what only torch needs: whatever the
environment lacks is taken from the interpreter that runs this script, by a line in a `.pth` file; its own packages
come first.

LiteLLM's proxy and garak run as processes of their own, against `promptguard serve` as a process of its own.

`--where-possible`, first: where the packages cannot be installed, say so and pass.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".venv-integrations"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
TESTS = [
    *(f"middleware_{name}" for name in ("openai", "asgi", "litellm", "nemo", "gradio")),
    "litellm_server",
    "garak",
]
# None phones home, asks a registry for models, nor fetches a list of prices.
QUIET = {
    "DO_NOT_TRACK": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
}


def build() -> Path:
    """Make the environment if it is not there as it should be; returns its interpreter."""
    python = HOME / "bin" / "python"
    mark, digest = HOME / "requirements.sha256", sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not mark.exists() or mark.read_text() != digest:
        venv.create(HOME, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--requirement", str(REQUIREMENTS)], check=True)
        mark.write_text(digest)
    here, there = sysconfig.get_path("purelib"), next(HOME.glob("lib/python*/site-packages"))
    (there / "zz_promptguard.pth").write_text(f"{ROOT}\n{here}\n", encoding="utf-8")
    return python


def main(arguments: list[str]) -> int:
    """Run the tests; returns pytest's exit status."""
    is_optional = arguments[:1] == ["--where-possible"]
    try:
        python = build()
    except subprocess.CalledProcessError:
        if not is_optional:
            raise
        sys.stdout.write("left out: the packages of tests/integrations/requirements.txt cannot be installed here\n")
        return 0
    tests = [f"tests/test_{name}.py" for name in TESTS]
    # Their warnings are not ours to mend.
    command = [str(python), "-m", "pytest", "-W", "default", *tests, *arguments[is_optional:]]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **QUIET}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
