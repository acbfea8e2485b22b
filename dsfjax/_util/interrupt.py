"""Ctrl-C of a command, at any moment."""

import os
import signal
import sys
import threading

MESSAGE = "dsfjax: interrupted; a training command, given again, continues from its last checkpoint"


def end_at_once() -> None:
    """From now on an interrupt (SIGINT) ends this process with one line and exit code 130.

    Python raises KeyboardInterrupt in its main thread, between two of its own instructions. That is
    late where a library compiles for half a minute, and where it comes within a callback of one,
    that library reports an error of its own with a long traceback. So a thread waits for the signal
    instead. It ends the process without unwinding it: for a process that can be killed at any
    moment without a loss, as a run can.
    """
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        return  # as under nohup
    if sys.platform == "win32":
        return  # Python's own interrupt, as a pipe cannot be woken by a signal there
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # the signal handler of Python demands it
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # Only a signal with a handler wakes the thread. While the event loop of a library runs, such as
    # the one for checkpoints, it takes the wakeup for itself; then the handler writes.
    signal.signal(signal.SIGINT, lambda number, _: os.write(writer, bytes([number])))
    threading.Thread(target=_wait, args=(reader,), daemon=True).start()


def _wait(reader: int) -> None:
    while os.read(reader, 1)[0] != signal.SIGINT:
        pass
    # A live table has hidden the cursor, and its last line has no end.
    restore = "\x1b[?25h\n" if sys.stderr.isatty() else ""
    os.write(2, f"{restore}{MESSAGE}\n".encode())
    os._exit(130)
