"""Optional packages: what is missing is named with the extra that brings it."""

import os
import subprocess
import sys

import pytest

from edge_core.errors import MissingExtra
from edge_core.extras import need


def test_a_module_that_is_there_is_returned():
    assert need("json.decoder", "onnx").JSONDecoder


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(MissingExtra, match=r"'no_such_package' is not installed") as error:
        need("no_such_package", "tflite")
    assert error.value.hint == "pip install 'edge-deploy[tflite]'"


def test_a_package_that_lacks_another_one_names_both(tmp_path, monkeypatch):
    (tmp_path / "half_a_package.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtra, match=r"half_a_package \(which needs no_such_package\)"):
        need("half_a_package", "tflite")


@pytest.mark.parametrize(("users", "expected"), [(None, "1"), ("0", "0")])
def test_onnxruntime_is_not_allowed_to_report_unless_the_user_said_so(users, expected):
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": users or ""}
    if users is None:
        del environment["ORT_DISABLE_TELEMETRY"]
    code = (
        "import os; from edge_core.extras import need; need('json', 'onnx');"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
