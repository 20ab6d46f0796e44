"""The signal of a session that has ended, such as that of a dropped ssh."""

from __future__ import annotations

import signal


def hangup() -> tuple[signal.Signals, ...]:
    """SIGHUP; nothing where there is none, as on Windows, or where it is ignored, as under nohup."""
    if not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return ()
    return (signal.SIGHUP,)
