import pytest

from service.__main__ import main


@pytest.mark.parametrize(("name", "value"), [("PORT", "high"), ("DEVICE", "tpu"), ("ARTIFACT", "/nowhere/at/all")])
def test_wrong_setting_stops_the_start_in_one_line(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # which is set from there on, and here taken back
    monkeypatch.setenv("GMERGING_PORT", "0")
    monkeypatch.setenv(f"GMERGING_{name}", value)
    with pytest.raises(SystemExit, match=value) as stop:
        main([])
    assert isinstance(stop.value.code, str)  # the interpreter prints it and exits with 1
    assert stop.value.code.startswith("gmerging-serve: ")
    assert "\n" not in stop.value.code
