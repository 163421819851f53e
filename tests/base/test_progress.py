"""Progress: what is shown of it, and what is not."""

import subprocess
import sys

PROGRAM = """
import sae.base
import warnings
from tqdm import TqdmWarning
warnings.warn("IProgress not found. Please update jupyter and ipywidgets.", TqdmWarning)
warnings.warn("clamping frac to range [0, 1]", TqdmWarning)
"""


def test_a_notebook_without_widgets_is_not_advised_to_install_them():
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert "IProgress" not in found.stderr
    assert "clamping frac" in found.stderr
