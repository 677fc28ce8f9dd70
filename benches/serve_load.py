#!/usr/bin/env python3
"""The server under load.

    serve_load.py soak  --watus BIN ENGINE [--backend cpu] [--requests 2000] [--clients 4]
    serve_load.py speed --watus BIN ENGINE [--tokens 256] [--json FILE]

soak: mixed requests, a tenth of whose clients go away and a twentieth of which make no sense. Every whole answer must be
what it was when it was asked for alone; at the end no slot may be taken, and memory is shown as it went.

speed: tokens a second of 1, 2 and 4 clients, what the server costs over the bare engine (`watus-build bench`), and the
first token of a prompt of 2,000 tokens, new and known. Prompts are token numbers, so any vocabulary does.

Needs nothing but Python.
"""

import argparse
import collections
import http.client
import json
import random
import statistics
import subprocess
import sys
import threading
import time

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


class Server:
    def __init__(self, args, *more):
        command = [args.watus, "serve", args.engine, "--backend", args.backend, "--port", "0", *more]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if "http://" in line:
                self.address = line.split("http://")[1].split("/v1")[0]
                break
        else:
            sys.exit("the server did not start")
        threading.Thread(target=collections.deque, args=(self.process.stderr, 0), daemon=True).start()
        while self.request("GET", "/health/ready")[0] != 200:
            time.sleep(0.1)

    def connect(self, method, path, body=None):
        connection = http.client.HTTPConnection(self.address, timeout=600)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def request(self, method, path, body=None):
        connection, response = self.connect(method, path, body)
        text = response.read().decode()
        connection.close()
        return response.status, text

    def metrics(self):
        lines = self.request("GET", "/metrics")[1].splitlines()
        return {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if not line.startswith("#")}

    def stop(self):
        self.process.terminate()
        assert self.process.wait() == 0, "the server did not end well"


def soak(args):
    random.seed(0)
    server = Server(args, "--queue", str(args.clients))
    topics = "whales trains rain bread moons robots chess rivers bees clocks".split()
    asks = [f"Tell me {kind} about {topic}." for topic in topics for kind in ("a fact", "a short story", "a joke", "much")]
    system = "You are a robot that helps in a museum. " * 10

    def body(index):
        messages = [{"role": "user", "content": asks[index]}]
        if index % 3 == 0:
            messages.insert(0, {"role": "system", "content": system})
        return {"model": "local-trt-llm", "messages": messages, "max_tokens": 2 + index % 12, "temperature": 0}

    def answer(text):
        choice = json.loads(text)["choices"][0]
        return choice["message"]["content"], choice["finish_reason"]
    expected = [answer(server.request("POST", CHAT, body(index))[1]) for index in range(len(asks))]
    plan = [(number, random.randrange(len(asks)), random.random()) for number in range(args.requests)]
    plan.reverse()
    lock, counts, wrong, memory = threading.Lock(), collections.Counter(), [], []
    nonsense = [b"", b"{", b"[]", json.dumps({**body(0), "model": "x"}).encode(), json.dumps({**body(0), "n": 3}).encode(),
                json.dumps({**body(0), "messages": [{"role": "user", "content": "long " * 4000}]}).encode()]

    def work():
        while True:
            with lock:
                if not plan:
                    return
                number, index, kind = plan.pop()
            if number % 100 == 0:
                metrics = server.metrics()
                memory.append((number, metrics['watus_memory_bytes{kind="resident"}'] / 1e6))
                print(f"{number:6d} requests, {memory[-1][1]:.0f} MB", flush=True)
            if kind < 0.05:
                status, text = server.request("POST", CHAT, random.choice(nonsense))
                good = 400 <= status < 500 and json.loads(text)["error"]["message"]
                outcome = "refused" if good else "wrong"
            elif kind < 0.15:
                connection, response = server.connect("POST", CHAT, {**body(index), "stream": True, "max_tokens": 100})
                response.read(random.randrange(1, 900))
                connection.close()
                outcome = "left"
            elif kind < 0.5:
                connection, response = server.connect("POST", CHAT, {**body(index), "stream": True})
                text, reason, events = "", None, response.read().decode().split("\n\n")
                connection.close()
                for event in events:
                    if event.startswith("data: {"):
                        choice = json.loads(event[6:])["choices"][0]
                        text += choice["delta"].get("content") or ""
                        reason = choice["finish_reason"] or reason
                outcome = "streamed" if (text, reason) == expected[index] and "data: [DONE]" in events else "wrong"
                if outcome == "wrong":
                    wrong.append((index, text, expected[index]))
            else:
                status, text = server.request("POST", CHAT, body(index))
                outcome = "whole" if status == 200 and answer(text) == expected[index] else "wrong"
                if outcome == "wrong":
                    wrong.append((index, text, expected[index]))
            counts[outcome] += 1
    begun = time.monotonic()
    workers = [threading.Thread(target=work) for _ in range(args.clients)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    seconds = time.monotonic() - begun
    for _ in range(600):
        metrics = server.metrics()
        stuck = metrics["watus_requests_running"] + metrics["watus_requests_waiting"]
        if not stuck:
            break
        time.sleep(0.1)
    prompt, reused = (metrics[f'watus_tokens_total{{kind="{kind}"}}'] for kind in ("prompt", "reused"))
    server.stop()
    warm = [value for number, value in memory if number >= args.requests // 4]
    print(f"{args.requests} requests of {args.clients} clients in {seconds:.0f} s: {dict(counts)}; slots still taken: {stuck:.0f}; "
          f"{100 * reused / prompt:.0f} % of {prompt:.0f} prompt tokens reused; resident memory after warm-up "
          f"{min(warm):.0f} to {max(warm):.0f} MB, at the end {memory[-1][1]:.0f} MB")
    print(*wrong[:5], sep="\n")
    sys.exit(1 if counts["wrong"] or stuck else 0)


def stream(server, prompt, tokens):
    """Seconds to the first text, and of each one after it."""
    begun = time.perf_counter()
    connection, response = server.connect("POST", TEXT, {
        "model": "local-trt-llm", "prompt": prompt, "max_tokens": tokens, "stream": True, "temperature": 0,
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
        body = {"model": "local-trt-llm", "prompt": prompt, "max_tokens": 16, "temperature": 0}
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
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["soak", "speed"])
    parser.add_argument("engine")
    parser.add_argument("--watus", required=True)
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--json")
    args = parser.parse_args()
    {"soak": soak, "speed": speed}[args.what](args)


main()
