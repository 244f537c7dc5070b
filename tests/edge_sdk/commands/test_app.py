"""The `edge` command as a whole: help, usage errors, exit codes."""

import re

from tests.edge_sdk.commands.messages import error_line, hint_line


def test_version_and_help_exit_with_0(edge):
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", edge("--version").stdout)
    assert "Usage: edge" in edge("--help").stdout


def test_wrong_usage_is_an_error_and_not_a_failed_gate(edge):
    assert "--profile" in error_line(edge("build", "model.onnx", ok=1))
    assert "No such command" in error_line(edge("biuld", ok=1))
    assert "No such option" in error_line(edge("doctor", "--jsn", ok=1))


def test_wrong_usage_names_the_help_of_its_command(edge, digits_package):
    completed = edge("bench", digits_package, "--threads", "100000", ok=1)
    assert "--threads" in error_line(completed)
    assert "edge bench --help" in hint_line(completed)


def test_a_strange_width_is_not_an_error(edge):
    for columns in ("abc", "0", "", "80"):
        assert "x86-64" in edge("profiles", "list", COLUMNS=columns).stdout
