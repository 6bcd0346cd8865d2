# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import signal
import types
from collections.abc import Iterator

import pytest

from mdft_fast.app.cli import entry


@pytest.fixture
def own_signal() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("own_signal")
def test_a_stop_while_importing_is_one_line_and_a_second_is_not_heard(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "commands", types.SimpleNamespace(app=stopped))
    monkeypatch.setattr(entry, "open_standard_streams", lambda: None)
    monkeypatch.setattr(entry.sys, "stderr", types.SimpleNamespace(fileno=lambda: 2))
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 130
    assert capfd.readouterr().err == "stopped\n"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
