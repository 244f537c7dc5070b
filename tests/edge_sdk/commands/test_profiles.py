"""`edge profiles`: list, show, check, schema and detect."""

import json


def test_profiles_list_show_check_schema_and_detect(edge, tmp_path):
    names = [profile["name"] for profile in json.loads(edge("profiles", "list", "--json").stdout)]
    assert len(names) >= 16
    text = edge("profiles", "show", "raspberry-pi-4b", "--set", "budgets.package_mb=7").stdout
    assert "package_mb = 7" in text
    (tmp_path / "mine.toml").write_text(text)
    assert "is fine" in edge("profiles", "check", tmp_path / "mine.toml").stderr
    assert json.loads(edge("profiles", "schema").stdout)["title"]
    edge("profiles", "detect", "--out", tmp_path / "here.toml")
    edge("profiles", "check", tmp_path / "here.toml")


def test_detect_writes_and_prints(edge, tmp_path):
    completed = edge("profiles", "detect", "--out", tmp_path / "here.toml", "--json")
    assert json.loads(completed.stdout)["name"] == "this-machine"
    assert (tmp_path / "here.toml").exists()


def test_check_prints_the_whole_profile_as_json(edge, tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "x86-64"\nname = "mine"\n')
    profile = json.loads(edge("profiles", "check", tmp_path / "mine.toml", "--json").stdout)
    assert profile["name"] == "mine"
