"""Off a terminal, progress is a few plain lines; on one it is a bar."""

import io
import logging
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loragen_infer.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(total=st.integers(min_value=1, max_value=500))
def test_at_most_ten_lines_whatever_the_total_and_the_last_says_all(caplog, total):
    caplog.clear()
    with caplog.at_level(logging.INFO), ProgressBar("work", total=total, unit="row") as bar:
        for step in range(total):
            bar.advance(nll=f"{step:.1f}")
    assert len(caplog.messages) == min(total, 10)
    assert caplog.messages[-1] == f"work: row {total} of {total}, nll {total - 1:.1f}."


def test_nothing_goes_to_the_stream_of_a_log_file(capsys):
    with ProgressBar("work", total=3, unit="row") as bar:
        bar.advance()
    assert capsys.readouterr() == ("", "")


def test_a_total_of_zero_is_no_error(caplog):
    with caplog.at_level(logging.INFO), ProgressBar("work", total=0, unit="row") as bar:
        bar.advance()
    assert caplog.messages == []


def test_a_terminal_gets_a_bar_and_no_lines(caplog, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with caplog.at_level(logging.INFO), ProgressBar("work", total=2, unit="row") as bar:
        bar.advance(nll="0.5")
        bar.advance(nll="0.4")
    assert "work: 100%" in terminal.getvalue()
    assert "nll=0.4" in terminal.getvalue()
    assert caplog.messages == []


def test_an_exception_closes_the_bar_and_passes_through(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(KeyboardInterrupt), ProgressBar("work", total=2, unit="row") as bar:
        raise KeyboardInterrupt
    assert bar._bar.disable
