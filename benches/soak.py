"""Mixed requests to a server, honest and hostile, and what became of them: `serve_load.py soak`."""

import collections
import http.client
import json
import random
import threading
import time

import hostile
from hostile import CHAT, MODEL

# Of a hostile soak's log so many lines are read.
LOG_LINES = 100


class Soak:
    """Mixed requests, what became of them, and what is wrong."""
    PEACEFUL = {"nonsense": 0.05, "left": 0.1, "streamed": 0.35, "whole": 0.5}
    HOSTILE = {"schema": 0.05, "large": 0.02, "left": 0.05, "special": 0.02, "host": 0.02, "nonsense": 0.03, "streamed": 0.35,
               "whole": 0.46}

    def __init__(self, server, is_hostile):
        self.server, self.hostile = server, is_hostile
        self.kinds = self.HOSTILE if is_hostile else self.PEACEFUL
        topics = "whales trains rain bread moons robots chess rivers bees clocks".split()
        kinds = ("a fact", "a short story", "a joke", "much")
        self.asks = [f"Tell me {kind} about {topic}." for topic in topics for kind in kinds]
        self.plain = len(self.asks)
        self.asks += hostile.SPELLINGS if is_hostile else []
        self.expected = [self.answer(server.request("POST", CHAT, self.body(index))[1]) for index in range(len(self.asks))]
        self.lock, self.counts = threading.Lock(), collections.defaultdict(collections.Counter)
        self.wrong, self.faults, self.memory, self.schemas = [], [], [], {}

    def body(self, index):
        messages = [{"role": "user", "content": self.asks[index]}]
        if index % 3 == 0:
            messages.insert(0, {"role": "system", "content": "You are a robot that helps in a museum. " * 10})
        return {"model": MODEL, "messages": messages, "max_tokens": 2 + index % 12, "temperature": 0}

    @staticmethod
    def answer(text):
        choice = json.loads(text)["choices"][0]
        return choice["message"]["content"], choice["finish_reason"]

    def compared(self, index, answer):
        if answer == self.expected[index]:
            return "as alone"
        self.wrong.append((index, answer, self.expected[index]))
        return "wrong"

    def refused(self, status, text, *allowed):
        """A refusal that may be: one of `allowed`, or of a server that has too much to do."""
        try:
            error = json.loads(text)["error"]
        except (ValueError, KeyError, TypeError):
            error = {"code": None, "message": None}
        load = self.hostile and (status in (429, 504) or (status, error["code"]) == (503, "too_many_connections"))
        if error["message"] and (load or status in allowed):
            return str(status)
        self.faults.append(f"{status}: {text[:300]}")
        return "fault"

    def judged(self, index, status, text):
        return self.compared(index, self.answer(text)) if status == 200 else self.refused(status, text)

    def do_whole(self, number, index, chance):
        return self.judged(index, *self.server.request("POST", CHAT, self.body(index)))

    def do_special(self, number, index, chance):
        return self.do_whole(number, self.plain + index % len(hostile.SPELLINGS), chance)

    def do_streamed(self, number, index, chance):
        connection, response = self.server.connect("POST", CHAT, {**self.body(index), "stream": True})
        whole, text, reason = response.read().decode(), "", None
        connection.close()
        if response.status != 200:
            return self.refused(response.status, whole)
        events = whole.split("\n\n")
        for event in events:
            if event.startswith("data: {"):
                data = json.loads(event[6:])
                if "error" in data:
                    late = data["error"]["code"] == "deadline_exceeded"
                    return self.refused(504 if late else 500, json.dumps(data))
                text += data["choices"][0]["delta"].get("content") or ""
                reason = data["choices"][0]["finish_reason"] or reason
        return self.compared(index, (text, reason) if "data: [DONE]" in events else whole[-300:])

    def do_left(self, number, index, chance):
        connection, response = self.server.connect("POST", CHAT, {**self.body(index), "stream": True, "max_tokens": 100})
        response.read(chance.randrange(1, 900))
        connection.close()
        return "left" if response.status == 200 else self.refused(response.status, '{"error": {"message": "?", "code": null}}')

    def do_nonsense(self, number, index, chance):
        long = {**self.body(0), "messages": [{"role": "user", "content": "long " * 4000}]}
        bodies = [b"", b"{", b"[]", {**self.body(0), "model": "x"}, {**self.body(0), "n": 3}, long]
        status, text = self.server.request("POST", CHAT, chance.choice(bodies))
        return self.refused(status, text, 400, 404)

    def do_host(self, number, index, chance):
        asked = [("GET", "/v1/models", None), ("GET", "/health", None), ("POST", CHAT, self.body(index))]
        method, path, body = chance.choice(asked)
        status, text = self.server.request(method, path, body, {"Host": chance.choice(hostile.HOSTS)})
        return self.refused(status, text, 403)

    def do_schema(self, number, index, chance):
        passes = chance.random() < 0.4
        name = chance.choice([name for name, (_, within) in hostile.schemas().items() if within == passes])
        body = {**hostile.schema_request(self.body(index), name, number, chance.random() < 0.5), "stream": chance.random() < 0.3}
        if chance.random() < 0.2:
            data = json.dumps(body).encode()
            hostile.hang_up(self.server.address, CHAT, data, len(data))
            return "left"
        begun = time.perf_counter()
        status, text = self.server.request("POST", CHAT, body)
        seconds = time.perf_counter() - begun
        # What passes may be answered, too; an answer that cannot go on is an error within its events.
        broken = '"error"' in text and any(f'"code":"{code}"' in text for code in ("engine_error", "internal_error"))
        outcome = "answered" if status == 200 and passes and not broken else self.refused(status, text, 400)
        with self.lock:
            about = self.schemas.setdefault(name, {"outcomes": collections.Counter(), "too_long": 0, "longest_ms": 0})
            about["outcomes"][outcome] += 1
            about["too_long"] += "took longer than" in text
            about["longest_ms"] = max(about["longest_ms"], round(1e3 * seconds))
        return outcome

    def do_large(self, number, index, chance):
        requests = hostile.large_requests(json.dumps(self.body(0)))
        path, data, must = requests[chance.choice(sorted(requests))]
        if chance.random() < 0.2:
            hostile.hang_up(self.server.address, path, data, chance.choice([len(data) // 2, len(data)]))
            return "left"
        try:
            status, text = self.server.request("POST", path, data)
        except (ConnectionResetError, BrokenPipeError):
            return "cut off"  # refused while it was still being sent
        return self.judged(0, status, text) if status == 200 == must else self.refused(status, text, must, 408)

    def work(self, plan):
        while True:
            with self.lock:
                if not plan:
                    return
                number, kind = plan.pop()
            chance = random.Random(number)
            try:
                if number % 100 == 0:
                    self.memory.append((number, self.server.metrics()['watus_memory_bytes{kind="resident"}'] / 1e6))
                    print(f"{number:6d} requests, {self.memory[-1][1]:.0f} MB", flush=True)
                outcome = getattr(self, f"do_{kind}")(number, chance.randrange(self.plain), chance)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                outcome = "fault"
                self.faults.append(f"{kind}: {error!r}")
            with self.lock:
                self.counts[kind][outcome] += 1

    def run(self, requests, clients):
        """All requests, of so many clients at once; the seconds they took."""
        kinds = random.Random(0).choices(list(self.kinds), list(self.kinds.values()), k=requests)
        plan = list(enumerate(kinds))[::-1]
        begun = time.monotonic()
        workers = [threading.Thread(target=self.work, args=(plan,)) for _ in range(clients)]
        [worker.start() for worker in workers]
        [worker.join() for worker in workers]
        return time.monotonic() - begun

    def settle(self):
        """Waits until nothing runs or waits; the last metrics, and how many requests still do."""
        for _ in range(600):
            metrics = self.server.metrics()
            stuck = metrics["watus_requests_running"] + metrics["watus_requests_waiting"]
            if not stuck:
                break
            time.sleep(0.1)
        return metrics, stuck


def soak(args, start):
    """`start` starts a server with more arguments, of whose log so many lines are read."""
    clients = args.clients or (16 if args.hostile else 4)
    queue = clients + 4 if args.hostile else clients  # the innocent, and who has just gone
    server = start("--queue", str(queue), log_lines=LOG_LINES if args.hostile else None)
    soaked = Soak(server, args.hostile)
    beside = [hostile.Innocent(server), hostile.Watcher(server)] if args.hostile else []
    [thread.start() for thread in beside]
    seconds = soaked.run(args.requests, clients)
    [thread.end() for thread in beside]
    metrics, stuck = soaked.settle()
    after = soaked.do_whole(args.requests, 1, None)
    for thread in beside:
        soaked.faults += thread.faults
    prompt, reused = (metrics[f'watus_tokens_total{{kind="{kind}"}}'] for kind in ("prompt", "reused"))
    warm = [value for number, value in soaked.memory if number >= args.requests // 4] or [0]
    refused = collections.Counter()
    for outcomes in soaked.counts.values():
        refused.update({outcome: count for outcome, count in outcomes.items() if outcome.isdigit()})
    results = {
        "requests": args.requests, "clients": clients, "seconds": round(seconds, 1),
        "outcomes": {kind: dict(outcomes) for kind, outcomes in soaked.counts.items()}, "refused": dict(refused),
        "prompt_tokens": prompt, "reused": round(reused / prompt, 3),
        "resident_mb_after_warm_up": [round(min(warm)), round(max(warm)), round(warm[-1])]}
    if args.hostile:
        innocent, watcher = beside
        soaked.wrong += innocent.wrong
        time.sleep(2)
        watcher.samples.append(watcher.sample())
        results["innocent"] = innocent.summary()
        results["health"], results["process"] = watcher.summary()
        results["schemas"] = soaked.schemas
        results["log"] = {"lines_read": LOG_LINES, "bytes_unread": server.unread(),
                          "lines_dropped": server.metrics().get("watus_log_lines_dropped_total")}
    results |= {"wrong": len(soaked.wrong), "faults": soaked.faults[:20], "still_running": stuck, "answers_afterwards": after,
                "exit_code": server.end()}
    print(json.dumps(results, indent=1))
    print(*soaked.wrong[:5], sep="\n")
    good = not soaked.wrong and not soaked.faults and not stuck and after == "as alone" and results["exit_code"] == 0
    return results, bool(good)
