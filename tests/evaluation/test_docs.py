"""The example of docs/evaluation.md runs as it stands, and gives what it says."""

import json
import re
from pathlib import Path

import pytest
from made_detectors import BASELINE, CANDIDATE, TRUTH

from mmattn.evaluation import evaluate

DOCS = Path(__file__).parents[2] / "docs/evaluation.md"


def test_the_example(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    truth = json.loads(json.dumps(TRUTH))
    truth["categories"][0]["name"] = "person"
    files = {"instances_val2017": truth, "baseline.bbox": BASELINE, "sge.bbox": CANDIDATE}
    for name, content in files.items():
        Path(f"{name}.json").write_text(json.dumps(content))
    section = DOCS.read_text().partition("\n## In Python\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 2
    namespace = {}
    for block in blocks:
        exec(block, namespace)
    output = capsys.readouterr().out
    assert evaluate(truth, BASELINE).table() in output
    assert "Small: better: +" in output
    assert namespace["difference"].low > 0
    assert json.loads(Path("baseline.json").read_text())["AP"] == namespace["result"].ap
    assert namespace["tiny"].by_size["tiny"].num_objects > 0
    assert Path("differences.png").stat().st_size > 10_000
