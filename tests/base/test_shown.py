"""What of a text reaches a terminal or a file: no secrets of URLs, nothing that steers a terminal."""

from __future__ import annotations

import logging

import pytest

from ftscale.base.errors import UserError
from ftscale.base.logs import log
from ftscale.base.shown import control_characters, shown, visible, without_secrets


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://host/rows.csv", "https://host/rows.csv"),
        ("https://me:pw@host/rows.csv", "https://<secret>@host/rows.csv"),
        ("https://ghp_abc@host/rows.csv", "https://<secret>@host/rows.csv"),
        ("https://me:p@ss@host/@me/rows.csv", "https://<secret>@host/@me/rows.csv"),
        ("s3://key:word@bucket/rows.csv", "s3://<secret>@bucket/rows.csv"),
        ("abfs://container@account.net/rows.csv", "abfs://container@account.net/rows.csv"),
        ("https://host/rows.csv?token=abc==&sig=x/y:z", "https://host/rows.csv?token=<secret>&sig=<secret>"),
        ("https://host/rows.csv?abc", "https://host/rows.csv?<secret>"),
        ("https://host/rows.csv#access_token=abc", "https://host/rows.csv#access_token=<secret>"),
        ("https://host/rows.csv?token=abc:17", "https://host/rows.csv?token=<secret>:17"),
        ("s3://bucket/part-?.csv", "s3://bucket/part-?.csv"),
        ("zip://a.csv::https://me:pw@host/a.zip?t=abc", "zip://a.csv::https://<secret>@host/a.zip?t=<secret>"),
        ("data/rows.csv", "data/rows.csv"),
    ],
)
def test_a_url_keeps_its_place_and_loses_its_secrets(url: str, expected: str):
    assert without_secrets(url) == expected
    assert without_secrets(expected) == expected
    assert shown(f"cannot read {url!r}, nor {url}; mend it.") == f"cannot read {expected!r}, nor {expected}; mend it."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x1b[2J\x1b[1;1H", r"\x1b[2J\x1b[1;1H"),
        ("\x9b2J", r"\x9b2J"),
        ("overwritten\rtext", r"overwritten\rtext"),
        ("one\n\ttwo", "one\n\ttwo"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("name-\udc80", r"name-\udc80"),
        ("Straße 漢字 🙂", "Straße 漢字 🙂"),
    ],
)
def test_what_steers_a_terminal_is_written_out(text: str, expected: str):
    assert visible(text) == expected


def test_control_characters_are_named_once_each():
    assert control_characters("a\nb\nc\x00\u2028") == r"\n\x00\u2028"
    assert control_characters("runs/Straße 1") == ""


def test_an_error_for_people_has_neither(caplog: pytest.LogCaptureFixture):
    assert str(UserError("https://me:pw@host/a.csv: \x1b[2J")) == "https://<secret>@host/a.csv: \\x1b[2J"
    with caplog.at_level(logging.INFO, "ftscale"):
        log.info("reading %s \x1b[2J", "https://host/a.csv?token=abc")
    assert caplog.messages == ["reading https://host/a.csv?token=<secret> \\x1b[2J"]
