"""Where logs go: threads write them, so that a reader that stalls holds up no request.

Lines that find no room, or that can't be written, are dropped and counted.
"""

import logging
import os
import select
import sys
import threading
from typing import TextIO

from service import log_lines, metrics

# The most bytes that wait for a reader.
MAX_WAITING_BYTES = 1_000_000
FLUSH_SECONDS = 0.1


class Output:
    """A file that a thread writes. It is a stream for `logging`; its methods don't raise."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.changed = threading.Condition()
        self.waiting: list[bytes] = []
        # The bytes that wait or are being written.
        self.size = 0
        threading.Thread(target=self._run, daemon=True, name=f"output-{file}").start()

    def write(self, text: str) -> None:
        """Writes a text soon, without the middle of a long one, such as an error with a body."""
        self.put(log_lines.without_middle(text, log_lines.MAX_LINE))

    def put(self, text: str) -> None:
        """Writes lines soon."""
        data = text.encode(errors="backslashreplace")
        with self.changed:
            if self.size + len(data) <= MAX_WAITING_BYTES:
                self.waiting.append(data)
                self.size += len(data)
                self.changed.notify_all()
                return
        metrics.dropped_lines.inc(data.count(b"\n"))

    def flush(self) -> None:
        """Waits for the last lines of a process. `logging` calls this after each line.

        Before that, it would hold up the event loop.
        """
        if _is_ending:
            self.finish()

    def finish(self, seconds: float = FLUSH_SECONDS) -> None:
        """Waits until all is written, or this long for a reader that stalls."""
        with self.changed:
            self.changed.wait_for(lambda: not self.size, seconds)

    def _run(self) -> None:
        start = b""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting)
                data = b"".join(self.waiting)
                self.waiting.clear()
            written = self._write(start + data) - len(start)
            if written < len(data):
                metrics.dropped_lines.inc(data.count(b"\n", max(0, written)))
            # A line that was begun must not run into the next one.
            start = b"\n" if 0 < written < len(data) and data[written - 1] != 10 else b""
            with self.changed:
                self.size -= len(data)
                self.changed.notify_all()

    def _write(self, data: bytes) -> int:
        """Writes the data, and gives the number of bytes for which that worked."""
        written = 0
        while written < len(data):
            try:
                written += os.write(self.file, data[written : written + 65_536])
            except BlockingIOError:  # another program has made the file so
                select.select([], [self.file], [])
            except OSError:
                break
        return written


_is_ending = False


def end() -> None:
    """From now on, each line of `logging` is waited for: the process may end after any of them."""
    global _is_ending
    _is_ending = True


# Two names of the same file share its thread, so that their lines don't mix.
_outputs: dict[tuple[int, int], Output] = {}


def of(stream: TextIO | None) -> Output | None:
    """The output of a stream such as `sys.stdout`; None if it is closed or no file."""
    try:
        file = stream.fileno()  # type: ignore[union-attr]
        status = os.fstat(file)
    except (AttributeError, OSError, ValueError):
        return None
    key = (status.st_dev, status.st_ino)
    if key not in _outputs:
        _outputs[key] = Output(file)
    return _outputs[key]


def redirect_logging() -> None:
    """Lets all handlers of `logging` that write to stdout or stderr write through threads."""
    for handler in log_lines.handlers():
        if isinstance(handler, logging.StreamHandler):
            _redirect(handler)
    # What has no handler goes there, such as this service's own warnings.
    errors = of(sys.stderr)
    if errors is not None:
        last = logging.StreamHandler(errors)
        last.setLevel(logging.WARNING)
        last.setFormatter(logging.lastResort.formatter if logging.lastResort else None)
        logging.lastResort = last


def _redirect(handler: "logging.StreamHandler[TextIO]") -> None:
    if handler.stream in (sys.stdout, sys.stderr):
        output = of(handler.stream)
        if output is not None:
            # `setStream` would flush the old one, which fails on a full device.
            handler.acquire()
            handler.stream = output  # type: ignore[assignment]
            handler.release()
