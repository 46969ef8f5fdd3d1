"""Ask the page of `sttm serve` for what no browser would, slowly and many at once, and count what becomes of it.

    python -m tests.fuzz.page --requests 2000 --uploads 50 --slow 5 --seed 0 --out results/fuzz/page.json

A request is answered, or refused. A fault is: no answer, a server that ends, a status of 500 and above but for 503 (the
queue is full), a traceback, a path of the machine in an answer, uploads that stay, memory beyond the
limit. The exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.fuzz.requests import API, BOUNDARY, PATIENCE, Answer, Page, multipart, odd_request

#: Bytes that the server may ever have had.
MEMORY = 3 * 2**30


# --- many at once ----------------------------------------------------------------------------------------------


@contextmanager
def slow_uploads(page: Page, count: int) -> Iterator[None]:
    """Keep uploads open that announce a megabyte and send a byte now and then."""
    sockets = [page.connect() for _ in range(count)]
    head = f"POST {API}/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
    head += f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    try:
        for number, connection in enumerate(sockets):
            connection.sendall(head.encode() + multipart(b"", "slow.mp4")[: 10 * number + 1])
        yield
    finally:
        for connection in sockets:
            connection.close()


def at_once(page: Page, clip: bytes, uploads: int) -> tuple[Counter[str], list[str]]:
    """Upload and classify a clip so many times at once; return the counts, and the faults."""

    def one(_: int) -> Answer:
        uploaded = page.upload(clip)
        return page.classify(page.body_for(json.loads(uploaded.body)[0])) if uploaded.status == 200 else uploaded

    with ThreadPoolExecutor(uploads) as pool:
        answers = list(pool.map(one, range(uploads)))
    faults = [fault for answer in answers if (fault := page.fault(answer))]
    counts = Counter("answered" if b"event: complete" in answer.body else "refused" for answer in answers)
    return counts, faults


# --- all of it -------------------------------------------------------------------------------------------------


def run(page: Page, clip: bytes, seed: int, *, requests: int, uploads: int, slow: int) -> dict[str, Any]:
    """Send odd requests, then uploads at once while slow ones hang; return the counts and the faults."""
    handle = json.loads(page.upload(clip).body)[0]
    right = page.classify(page.body_for(handle)).body
    faults = [] if b"event: complete" in right else [f"a good request is not answered: {right[:300]!r}"]
    counts: Counter[str] = Counter()
    for number in range(requests):
        try:
            kind, answer = odd_request(page, random.Random(f"{seed}-{number}"), clip, handle)
            fault = page.fault(answer)
        except TimeoutError:
            kind, answer, fault = "hang", Answer(0, b""), f"no answer in {PATIENCE} s"
        refused = not 200 <= answer.status < 400 or b"event: error" in answer.body
        counts[f"{kind}: {'fault' if fault else 'refused' if refused else 'answered'}"] += 1
        if fault:
            faults.append(f"request {number}, {kind}: {fault}")
    large = page.upload(bytes(20_000_000))
    counts[f"too large: {'refused' if not 200 <= large.status < 300 else 'taken'}"] += 1
    with slow_uploads(page, slow):
        many, wrong = at_once(page, clip, uploads)
    faults += wrong
    again = page.classify(page.body_for(handle)).body
    if _scores(again) != _scores(right):
        faults.append("after all that, a good request has another answer")
    counts |= {f"at once: {name}": count for name, count in many.items()}
    told = {"requests": requests, "uploads_at_once": uploads, "slow_uploads": slow}
    return {**told, **dict(sorted(counts.items())), "faults": faults}


def _scores(body: bytes) -> str:
    """Return the part of an answer that does not depend on the time."""
    found = re.search(rb'"merged": \[.*?\]', body)
    return found[0].decode() if found else repr(body[:300])


@contextmanager
def served(seeds: Path, temporary: Path, port: int) -> Iterator[tuple[Page, subprocess.Popen[bytes], Path]]:
    """Start `sttm serve` in a process of its own, with its temporary files in a folder of their own."""
    log = temporary.with_name("serve.log")
    command = [sys.executable, "-m", "sttm", "serve", "--model", str(seeds / "plain"), "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--megabytes", "1"], stdout=file, stderr=file, env=os.environ | {"TMPDIR": str(temporary)}
        )
    secret = (str(seeds), str(Path(sys.prefix)), str(Path(__file__).resolve().parents[2]), str(Path.home()) + "/")
    try:
        for _ in range(10 * PATIENCE):
            folders = list(temporary.glob("sttm-serve-*"))
            page = Page(f"http://127.0.0.1:{port}", folders[0] if folders else temporary, "plain", secret)
            try:
                if page.ask("GET", "/").status == 200:
                    break
            except OSError:
                pass
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield page, process, log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--requests", type=int, default=2000)
    options.add_argument("--uploads", type=int, default=50)
    options.add_argument("--slow", type=int, default=5)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--port", type=int, default=7869)
    options.add_argument("--log", type=Path, help="file for what the server said")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    from tests.fuzz import seeds
    from tests.fuzz.made import about, write

    with TemporaryDirectory(prefix="sttm-fuzz-") as name:
        made, temporary = Path(name) / "seeds", Path(name) / "temporary"
        made.mkdir()
        temporary.mkdir()
        seeds.make(made)
        clip = (made / "clips" / "seed.mp4").read_bytes()
        with served(made, temporary, given.port) as (page, process, log):
            counts = run(page, clip, given.seed, requests=given.requests, uploads=given.uploads, slow=given.slow)
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = 1024 * int(re.findall(r"VmHWM:\s*(\d+)", status)[0])
        left = [str(path.relative_to(temporary)) for path in temporary.rglob("*")]
        if given.log is not None:
            shutil.copy(log, given.log)
        counts["tracebacks_in_its_log"] = log.read_text("utf-8", "replace").count("Traceback")
    faults = counts.pop("faults")
    faults += [f"{path} is left" for path in left] + ["memory"] * (peak > MEMORY)
    faults += ["a traceback in the log"] * bool(counts["tracebacks_in_its_log"])
    counts |= {"peak_memory_mb": peak // 2**20, "files_left": len(left), "faults": faults}
    write(about(given.seed) | counts, given.out)


if __name__ == "__main__":
    main()
