"""A probe that fails is a line, and what it told before stays."""

from __future__ import annotations

from collections.abc import Iterator

from ftscale.doctor.findings import Finding, ask


def test_a_failing_probe_becomes_its_line():
    def probe() -> Iterator[Finding]:
        yield Finding("first", "ok", "is well")
        raise OSError("the driver\nis odd")

    first, second = ask("second", probe)
    assert first.line.split() == ["ok", "first", "is", "well"]
    assert (second.name, second.state) == ("second", "note")
    assert second.line.endswith("cannot be told (OSError: the driver is odd); put this line into a bug report")
