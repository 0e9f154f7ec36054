"""`diorama doctor --plan`: tests/pipelines/test_plan.py checks the numbers."""

import re

import pytest


@pytest.mark.timeout(600)
def test_a_plan_is_a_table_with_a_column_a_stage(command):
    result = command("doctor", "--plan", "vggt", "--views", 1, "--size", "14x28")
    assert result.code == 0, result.err
    rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines() if line.strip()}
    assert rows["GiB"] == ["tokens", "heads"]
    for weights, activations, together in zip(rows["weights"], rows["activations"], rows["together"], strict=True):
        assert abs(float(weights) + float(activations) - float(together)) < 0.011
    peaks = re.findall(r"^peak with --offload (\w+): ([\d.]+) GiB", result.out, re.MULTILINE)
    assert [offload for offload, _ in peaks] == ["none", "stages", "blocks"]
    assert peaks[1][1] == max(rows["together"], key=float)


def test_what_cannot_be_planned_is_one_line(command):
    assert command.refused("doctor", "--plan", "tiny") == "plan of 'tiny': accepted are gen3r, vggt"
    said = command.refused("doctor", "--plan", "gen3r", "--size", "560")
    assert said == "--size '560': accepted is HEIGHTxWIDTH, like 560x560"
    assert command.refused("doctor", "--plan", "gen3r", "--views", 16).startswith("16 views of 560x560: Gen3R accepts")
