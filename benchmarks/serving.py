"""How much of a model's own rate its service keeps.

    python benchmarks/serving.py MODEL TEXTS --connections 64 --seconds 20

starts ``labelspace serve`` on a free port of the loopback address, sends the texts (a file as for ``labelspace
predict``), one a request, over so many connections that are kept open, and times `Model.predict` on the same texts,
before and after, in a process of its own. Prints both rates, their ratio, latencies and errors as JSON. With wrk
installed, ``--wrk`` lets it send the requests. Client, service and model share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

PREDICT = """
import json, sys, time
import labelspace as ls
model = ls.Model.load(sys.argv[1], "cpu")
texts = json.load(open(sys.argv[2]))
model.predict(texts[:256], k=int(sys.argv[3]))
began = time.perf_counter()
model.predict(texts, k=int(sys.argv[3]))
print(len(texts) / (time.perf_counter() - began))
"""
WRK = """
local bodies = {{}}
for line in io.lines("{file}") do bodies[#bodies + 1] = line end
local at = 0
request = function()
  at = at % #bodies + 1
  return wrk.format("POST", "/v1/predict", {{["Content-Type"] = "application/json"}}, bodies[at])
end
done = function(summary, latency, requests)
  local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format("RESULT %d %d %f %f %d\\n", summary.requests, summary.duration,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, errors + summary.errors.status))
end
"""


def rate_of_model(model: Path, texts: Path, k: int) -> float:
    """Texts a second of `Model.predict`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, model, texts, str(k)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    """One request over an open connection: status and body of the answer."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    return int(head.split(b" ", 2)[1]), await reader.readexactly(int(length))


def request(port: int, body: bytes, verb: str = "POST", path: str = "/v1/predict") -> bytes:
    """A request as bytes."""
    head = f"{verb} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def drive(port: int, bodies: list[bytes], connections: int, seconds: float) -> dict[str, Any]:
    """Send requests over open connections, each the next one when the last was answered."""
    turn = itertools.cycle(bodies)
    times: list[float] = []
    errors = 0
    end = time.perf_counter() + seconds

    async def one() -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.perf_counter()) < end:
            status, _ = await exchange(reader, writer, request(port, next(turn)))
            times.append(time.perf_counter() - began)
            errors += status != 200
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(connections)))
    passed = time.perf_counter() - began
    p50, p99 = (1000 * float(q) for q in np.percentile(times, [50, 99]))
    return {"requests": len(times), "rate": len(times) / passed, "p50_ms": p50, "p99_ms": p99, "errors": errors}


def drive_wrk(port: int, bodies: list[bytes], connections: int, seconds: float, folder: Path) -> dict[str, Any]:
    """The same with wrk, one thread."""
    (folder / "bodies").write_bytes(b"\n".join(bodies) + b"\n")
    (folder / "wrk.lua").write_text(WRK.format(file=folder / "bodies"))
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{int(seconds)}s",
        "--timeout",
        "30s",
        "-s",
        str(folder / "wrk.lua"),
    ]
    done = subprocess.run([*command, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    requests, microseconds, p50, p99, errors = map(float, line.split()[1:])
    rate = requests / (microseconds / 1e6)
    return {"requests": int(requests), "rate": rate, "p50_ms": p50, "p99_ms": p99, "errors": int(errors)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", help="file of texts, as for labelspace predict")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--count", type=int, default=8192, help="texts, the first of the file")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--wrk", action="store_true", help="send with wrk")
    options = parser.parse_args()
    if options.wrk and shutil.which("wrk") is None:
        parser.error("wrk is not installed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the service is ended too
    from labelspace.data.texts import read_texts

    texts = read_texts(options.texts)[1][: options.count]
    bodies = [json.dumps({"texts": [text], "k": options.k}).encode() for text in texts]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts.json").write_text(json.dumps(texts))
        before = rate_of_model(options.model, folder / "texts.json", options.k)
        command = [sys.executable, "-m", "labelspace", "serve", str(options.model), "--port", "0", "--json", "--quiet"]
        service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert service.stdout is not None
            told = json.loads("".join(iter(service.stdout.readline, "}\n")) + "}")
            port = int(told["url"].rstrip("/").split(":")[-1])

            async def ready() -> None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                while (await exchange(reader, writer, request(port, b"", "GET", "/readyz")))[0] != 200:
                    await asyncio.sleep(0.2)
                writer.close()

            asyncio.run(ready())
            asyncio.run(drive(port, bodies, options.connections, min(3, options.seconds)))  # warm
            if options.wrk:
                found = drive_wrk(port, bodies, options.connections, options.seconds, folder)
            else:
                found = asyncio.run(drive(port, bodies, options.connections, options.seconds))
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait()
        after = rate_of_model(options.model, folder / "texts.json", options.k)
    own = max(before, after)
    result = {"model": str(options.model), "texts": len(texts), "connections": options.connections, "k": options.k}
    result |= {"predict_before": before, "predict_after": after, **found, "ratio": found["rate"] / own}
    print(json.dumps({n: round(v, 3) if isinstance(v, float) else v for n, v in result.items()}, indent=2))


if __name__ == "__main__":
    main()
