"""Puts a Python function behind HTTP, for the reward 'http' (the protocol is in flowjax/rewards/remote.py):

    python -m flowjax.rewards.serve --function my_rewards:Liked --port 8000 --options '{"model": "large"}'

It listens on this machine alone unless told, and asks nobody who they are: behind another --host, whoever reaches the port may
use it. Requests are answered in threads of their own, so the function may be called for several at once.
"""

import argparse
import http.server
import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowjax.rewards.calls import RewardMistake, Score, checked, told
from flowjax.rewards.functions import prepare_function
from flowjax.rewards.remote import SCORES, unpack

LIMIT = 1 << 30  # bytes of a request
PIECE = 1 << 20


def make_server(score: Score, host: str, port: int, limit: int = LIMIT) -> http.server.ThreadingHTTPServer:
    """A server that is bound to its port; serve_forever() starts it.

    Args:
      score: (samples, cond) -> one number for each sample.
      host: the address it listens on.
      port: or 0 for any that is free.
      limit: the most bytes of a request.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 60.0  # seconds without a byte, after which a client is given up

        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length") or "")
            except ValueError:
                self._reply(411, "The request does not say its Content-Length.")
                return
            if length < 0 or length > limit:
                left = max(length, 0)  # what is on its way is taken, or the client could not read why it was refused
                while left > 0 and (piece := self.rfile.read(min(left, PIECE))):
                    left -= len(piece)
                self._reply(413, f"The request has {length:,} bytes, and {limit:,} are allowed. Use a smaller batch.")
                return
            try:
                samples, cond = unpack(self.rfile.read(length), limit)
            except ValueError as error:
                self._reply(400, str(error))
                return
            try:
                scores = checked(score(samples, cond), len(samples), "The function")
            except RewardMistake as error:
                self._reply(422, str(error))
            except Exception as error:
                traceback.print_exc()
                self._reply(500, told(error))
            else:
                listed = [float(value) if np.isfinite(value) else None for value in scores]
                self._reply(200, json.dumps({SCORES: listed}), "application/json")

        def _reply(self, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            """Says nothing of requests that went well."""
            if str(code) != "200":
                super().log_request(code, size)

    return http.server.ThreadingHTTPServer((host, port), Handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m flowjax.rewards.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--function", required=True, help="package.module:callable of (samples, cond), or a class")
    parser.add_argument("--options", type=json.loads, default={}, help="its keyword arguments, as JSON")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: this machine alone)")
    parser.add_argument("--limit", type=int, default=LIMIT, help="the most bytes of a request (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not isinstance(options.options, dict):
        parser.error(f'--options is {options.options!r}; expected a JSON object, such as {{"scale": 2}}')
    try:
        score = prepare_function(options.function, options.options)
        server = make_server(score, options.host, options.port, options.limit)
    except (ValueError, OSError) as error:
        print(f"flowjax: {error}", file=sys.stderr)
        return 2
    with server:
        print(f"{options.function} on http://{options.host}:{server.server_port} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
