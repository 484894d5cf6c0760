"""The pictures beside the results of the benchmark are those of scripts/plot."""

import shutil
import subprocess
import xml.etree.ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLOT = ROOT / "scripts/plot"
RESULTS = sorted((ROOT / "bench/results").glob("*.json"))


@pytest.mark.parametrize("results", RESULTS, ids=lambda path: path.name)
def test_pictures_show_the_results_beside_them(results, tmp_path):
    copy = Path(shutil.copy(results, tmp_path))
    subprocess.run([PLOT, copy], check=True, timeout=30)
    drawn = copy.with_suffix(".svg").read_text()
    xml.etree.ElementTree.fromstring(drawn)
    assert results.with_suffix(".svg").read_text() == drawn, f"run scripts/plot {results.name}"


@pytest.mark.parametrize("content", ["", "[1]", '{"workloads": {"idle": {"proxies": {}}}}'])
def test_what_are_no_results_is_refused(content, tmp_path):
    file = tmp_path / "x.json"
    file.write_text(content)
    ran = subprocess.run([PLOT, file], capture_output=True, text=True, timeout=30)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"plot: {file}: ") and "Traceback" not in ran.stderr
