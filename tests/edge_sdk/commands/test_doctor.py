"""`edge doctor` on this machine."""

import json


def test_doctor_says_what_is_here(edge):
    checks = json.loads(edge("doctor", "--json").stdout)
    assert {check["what"]: check["state"] for check in checks}["runtime onnxruntime"] == "ok"
