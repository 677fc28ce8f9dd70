#!/usr/bin/env python3
"""The server under load.

    serve_load.py soak  --watus BIN ENGINE [--backend cpu] [--requests 2000] [--clients 4] [--json FILE]
    serve_load.py soak --hostile --watus BIN ENGINE [--backend cpu] [--requests 2000] [--clients 16] [--json FILE]
    serve_load.py speed --watus BIN ENGINE [--tokens 256] [--json FILE]

soak: mixed requests, a tenth of whose clients go away and a twentieth of which make no sense. Every whole answer must be
what it was when it was asked for alone; at the end no slot may be taken, and memory is shown as it went.

--hostile adds what strangers send (hostile.py): schemas that would take for ever, prompts of 8 MB, spellings of special
tokens, wrong hosts; and nobody reads the log after its first lines. One innocent client asks meanwhile, /health is looked
at twice a second, and SIGTERM must end the server with code 0. Times are reported, and fail nothing.

speed: tokens a second of 1, 2 and 4 clients, what the server costs over the bare engine (`watus-build bench`), and the
first token of a prompt of 2,000 tokens, new and known. Prompts are token numbers, so any vocabulary does.

Needs nothing but Python.
"""

import argparse
import collections
import fcntl
import functools
import http.client
import itertools
import json
import random
import statistics
import struct
import subprocess
import sys
import termios
import threading
import time

import soak
from hostile import MODEL, TEXT

# Bytes of the log that may wait for a reader that has stopped.
PIPE = 4096


class Server:
    """A server that runs. Of its log `log_lines` are read, then no more, as by a reader that hangs; all if it says nothing."""

    def __init__(self, args, *more, log_lines=None):
        command = [args.watus, "serve", args.engine, "--backend", args.backend, "--port", "0", *more]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        if log_lines is not None:
            # Full soon.
            fcntl.fcntl(self.process.stderr, getattr(fcntl, "F_SETPIPE_SZ", 1031), PIPE)
        for line in self.process.stderr:
            if "http://" in line:
                self.address = line.split("http://")[1].split("/v1")[0]
                break
        else:
            sys.exit("the server did not start")
        lines = itertools.islice(self.process.stderr, log_lines)
        threading.Thread(target=collections.deque, args=(lines, 0), daemon=True).start()
        while self.request("GET", "/health/ready")[0] != 200:
            time.sleep(0.1)

    def connect(self, method, path, body=None, headers=None, source=None):
        connection = http.client.HTTPConnection(self.address, timeout=600, source_address=source)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all of it was sent: the answer says why
        return connection, connection.getresponse()

    def request(self, method, path, body=None, headers=None, source=None):
        connection, response = self.connect(method, path, body, headers, source)
        text = response.read().decode()
        connection.close()
        return response.status, text

    def metrics(self):
        lines = self.request("GET", "/metrics")[1].splitlines()
        return {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if not line.startswith("#")}

    def unread(self):
        """Bytes of the log that wait in the pipe."""
        return struct.unpack("i", fcntl.ioctl(self.process.stderr, termios.FIONREAD, b"\0" * 4))[0]

    def end(self):
        """Asks the server to end; its exit code, or none if it has to be killed."""
        self.process.terminate()
        try:
            return self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return None

    def stop(self):
        assert self.end() == 0, "the server did not end well"


def save(args, results):
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=1)


def stream(server, prompt, tokens):
    """Seconds to the first text, and of each one after it."""
    begun = time.perf_counter()
    connection, response = server.connect("POST", TEXT, {
        "model": MODEL, "prompt": prompt, "max_tokens": tokens, "stream": True, "temperature": 0,
        "logit_bias": {"2": -100}})
    assert response.status == 200, response.read()
    times = []
    for line in response:
        if line.startswith(b'data: {'):
            assert b'"error"' not in line, line
            times.append(time.perf_counter())
    connection.close()
    return times[0] - begun, [after - before for before, after in zip(times, times[1:])]


def speed(args):
    server = Server(args)
    random.seed(1)

    def prompt(length):
        return [random.randrange(3, args.vocabulary) for _ in range(length)]
    stream(server, prompt(128), 32)  # graphs are captured, kernels prepared
    results = {"health": json.loads(server.request("GET", "/health")[1])}
    rounds = []
    for clients in (1, 2, 4):
        rates, gaps = [], []
        for _ in range(args.rounds):
            prompts, outcomes = [prompt(128) for _ in range(clients)], []
            begun = time.perf_counter()
            workers = [threading.Thread(target=lambda p: outcomes.append(stream(server, p, args.tokens)), args=(p,)) for p in prompts]
            [worker.start() for worker in workers]
            [worker.join() for worker in workers]
            rates.append(clients * args.tokens / (time.perf_counter() - begun))
            gaps += [gap for _, list_ in outcomes for gap in list_]
        rounds.append({"clients": clients, "tokens_per_second": statistics.median(rates),
                       "between_tokens_ms": 1e3 * statistics.median(gaps),
                       "between_tokens_p99_ms": 1e3 * statistics.quantiles(gaps, n=100)[98]})
    results["clients"] = rounds
    cold, warm = [], []
    for _ in range(args.rounds + 2):
        long = prompt(2000)
        cold.append(stream(server, long, 2)[0])
        warm.append(stream(server, long[:-8] + prompt(8), 2)[0])
    results["first_token_2000"] = {"new_ms": 1e3 * statistics.median(cold), "known_ms": 1e3 * statistics.median(warm)}
    # The same answers, alone, again (from what its slot holds), and side by side (from what another slot holds).
    def whole(prompt):
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 16, "temperature": 0}
        return json.loads(server.request("POST", TEXT, body)[1])["choices"][0]["text"]
    prompts = [prompt(length) for length in (20, 100, 300, 700)]
    alone, again, beside, copied = [whole(p) for p in prompts], [whole(p) for p in prompts], {}, {}
    for store, asked in ((beside, prompts), (copied, [prompts[3]] * 4)):
        workers = [threading.Thread(target=lambda i, p, s=store: s.update({i: whole(p)}), args=(i, p)) for i, p in enumerate(asked)]
        [worker.start() for worker in workers]
        [worker.join() for worker in workers]
    results["answers_of_16_tokens_as_alone"] = {
        "again": f"{sum(a == b for a, b in zip(alone, again))} of 4",
        "side by side": f"{sum(alone[i] == beside[i] for i in range(4))} of 4",
        "four times at once": f"{sum(alone[3] == copied[i] for i in range(4))} of 4"}
    # Running answers while a long prompt is read.
    gaps = []
    reader = threading.Thread(target=lambda: gaps.extend(stream(server, prompt(128), args.tokens)[1]))
    reader.start()
    time.sleep(0.3)
    stream(server, prompt(2000), 2)
    reader.join()
    results["longest_gap_beside_a_prompt_of_2000_ms"] = 1e3 * max(gaps)
    server.stop()
    command = [args.watus, "bench", args.engine, "--backend", args.backend, "--json", "--lengths", "2000", "--contexts",
               str(128 + args.tokens // 2)]
    results["bare"] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[0]
    print(json.dumps(results, indent=1))
    save(args, results)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["soak", "speed"])
    parser.add_argument("engine")
    parser.add_argument("--watus", required=True)
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, help="4, hostile 16")
    parser.add_argument("--hostile", action="store_true")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.what == "speed":
        return speed(args)
    results, good = soak.soak(args, functools.partial(Server, args))
    save(args, results)
    sys.exit(0 if good else 1)


main()
