"""The packages agents use, against the server: what OpenAI's service promises them must hold here.

usage: clients.py http://HOST:PORT MODEL

Prints a line per check; fails at the first that does not hold.
"""

import asyncio
import enum
import json
import sys
import urllib.request

import openai
import pydantic
from pydantic_ai import Agent, ModelSettings, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

ADDRESS, MODEL = sys.argv[1:]
client = openai.OpenAI(base_url=f"{ADDRESS}/v1", api_key="not-needed", max_retries=0)
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a city now", "parameters": {
        "type": "object", "required": ["city"], "properties": {
            "city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}}}}}
TIME = {"type": "function", "function": {
    "name": "get_time", "description": "The time in a city", "parameters": {
        "type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}}}


def ask(messages=CAPITAL, **more):
    return client.chat.completions.create(model=MODEL, messages=messages, **more)


def refused(status, call):
    try:
        call()
    except openai.APIStatusError as error:
        assert error.status_code == status, error
        return error
    raise AssertionError(f"nothing was refused with {status}")


def plain():
    completion = ask()
    assert "Paris" in completion.choices[0].message.content, completion
    assert completion.choices[0].finish_reason == "stop" and completion.object == "chat.completion"
    usage = completion.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    assert completion._request_id
    parts = [{"role": "developer", "content": "Be brief."}, {"role": "system", "content": "Be kind."},
             {"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}]
    assert ask(parts, user="me", metadata={"a": "b"}, store=True).choices[0].message.content


def stream_with_usage():
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == ask().choices[0].message.content, text
    assert chunks[0].choices[0].delta.role == "assistant" and len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])
    often = list(ask(stream=True, extra_body={"stream_options": {"continuous_usage_stats": True}}))
    assert all(chunk.usage for chunk in often) and often[-1].usage.completion_tokens > 0


def one_required_tool():
    choice = ask([{"role": "user", "content": "What is the weather in Paris?"}], tools=[WEATHER], tool_choice="required",
                 parallel_tool_calls=False).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and call.id and call.type == "function"
    assert call.function.name == "get_weather" and isinstance(json.loads(call.function.arguments)["city"], str)
    named = ask(tools=[WEATHER, TIME], tool_choice={"type": "function", "function": {"name": "get_time"}})
    assert {call.function.name for call in named.choices[0].message.tool_calls} == {"get_time"}
    with client.chat.completions.stream(model=MODEL, messages=CAPITAL, tools=[WEATHER], tool_choice="required",
                                        parallel_tool_calls=False) as stream:
        whole = stream.get_final_completion().choices[0]
    assert json.loads(whole.message.tool_calls[0].function.arguments)["city"] and whole.finish_reason == "tool_calls"


def two_tools_auto():
    for words in ("Say hello.", "What is the weather in Rome?"):
        message = ask([{"role": "user", "content": words}], tools=[WEATHER, TIME], max_tokens=80).choices[0].message
        assert message.content or message.tool_calls
        for call in message.tool_calls or []:
            assert call.function.name in ("get_weather", "get_time") and json.loads(call.function.arguments)
    assert not ask(tools=[WEATHER], tool_choice="none", max_tokens=30).choices[0].message.tool_calls


def tool_round_trip():
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked = ask(messages, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False).choices[0].message
    messages += [asked.model_dump(exclude_none=True),
                 {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": "Sunny, 21 degrees."}]
    told = ask(messages, tools=[WEATHER], max_tokens=60).choices[0].message
    assert told.content and not told.tool_calls, told


class Mood(enum.Enum):
    calm = "calm"
    curious = "curious"


class Place(pydantic.BaseModel):
    room: str = pydantic.Field(max_length=12)
    floor: int = pydantic.Field(ge=0, le=9)


class Robot(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    mood: Mood
    home: Place
    wheels: int | None = pydantic.Field(ge=1, le=8)
    friends: list[Place] = pydantic.Field(max_length=2)


def json_schema():
    for _ in range(2):
        parsed = client.chat.completions.parse(model=MODEL, messages=[{"role": "user", "content": "Describe a robot."}],
                                               response_format=Robot)
        assert isinstance(parsed.choices[0].message.parsed, Robot), parsed
    free = ask([{"role": "user", "content": "Describe a robot as JSON."}], response_format={"type": "json_object"},
               max_tokens=150).choices[0]
    assert free.finish_reason == "length" or isinstance(json.loads(free.message.content), dict)
    error = refused(400, lambda: ask(response_format={"type": "json_schema", "json_schema": {
        "name": "x", "schema": {"type": "robot"}}}))
    assert error.param == "response_format", error


def stop():
    whole = ask().choices[0].message.content
    cut = ask(stop=["Paris"])
    assert cut.choices[0].message.content == whole.split("Paris")[0] and cut.choices[0].finish_reason == "stop"
    assert ask(stop="capital").choices[0].message.content == whole.split("capital")[0]


def seed():
    def draw(seed):
        return ask(temperature=1.5, seed=seed, max_tokens=20).choices[0].message.content
    assert draw(1) == draw(1) != draw(2)


def length():
    one = ask(max_completion_tokens=1)
    assert one.choices[0].finish_reason == "length" and one.usage.completion_tokens == 1


def logprobs():
    entries = ask(logprobs=True, top_logprobs=3, max_tokens=4).choices[0].logprobs.content
    assert len(entries) == 4 and all(len(entry.top_logprobs) == 3 for entry in entries)
    assert all(entry.token == entry.top_logprobs[0].token and entry.logprob <= 0 for entry in entries), "greedy"
    token = 28  # any token, made impossible and then certain
    assert ask(logit_bias={token: 100}, max_tokens=2, logprobs=True).choices[0].logprobs.content[0].logprob < 0
    refused(400, lambda: ask(n=2))


def too_long():
    error = refused(400, lambda: ask([{"role": "user", "content": "word " * 3000}]))
    assert error.code == "context_length_exceeded" and error.body["message"], error
    error = refused(400, lambda: ask([{"role": "user", "content": "word " * 3000}], stream=True))
    assert error.code == "context_length_exceeded"


def wrong_model():
    error = refused(404, lambda: client.chat.completions.create(model="gpt-4", messages=CAPITAL))
    assert error.code == "model_not_found" and isinstance(error, openai.NotFoundError)
    assert MODEL in [model.id for model in client.models.list()] and client.models.retrieve(MODEL).owned_by
    refused(404, lambda: client.models.retrieve("gpt-4"))
    refused(404, lambda: client.embeddings.create(model=MODEL, input="x"))


def completions():
    completion = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=4, logprobs=2)
    assert "Paris" in completion.choices[0].text and completion.choices[0].finish_reason == "length"
    assert len(completion.choices[0].logprobs.tokens) == 4
    pieces = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=4, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == completion.choices[0].text
    refused(400, lambda: client.completions.create(model=MODEL, prompt="x", echo=True))
    refused(400, lambda: client.completions.create(model=MODEL, prompt=["x", "y"]))


def running():
    lines = urllib.request.urlopen(f"{ADDRESS}/metrics").read().decode().splitlines()
    value = {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}
    return value["watus_requests_running"] + value["watus_requests_waiting"]


def wait_until_idle():
    while running():
        pass


def disconnect_frees_the_slot():
    for _ in range(6):  # more than there are slots
        stream = ask([{"role": "user", "content": "Tell a very long story."}], stream=True, max_tokens=400)
        next(iter(stream))
        stream.close()
    wait_until_idle()
    assert ask(max_tokens=1).usage.completion_tokens == 1


def queue_full():
    async def flood():
        many = openai.AsyncOpenAI(base_url=f"{ADDRESS}/v1", api_key="x", max_retries=0)

        async def one():
            try:
                stream = await many.chat.completions.create(model=MODEL, messages=CAPITAL, max_tokens=4, stream=True)
                return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
            except openai.RateLimitError as error:
                assert int(error.response.headers["retry-after"]) >= 1 and error.code == "rate_limit_exceeded"
                return None
        return await asyncio.gather(*(one() for _ in range(24)))
    answers = asyncio.run(flood())
    assert None in answers and len(set(answers) - {None}) == 1, answers
    assert len([answer for answer in answers if answer]) >= 8, "slots and queue are used"


def agent(**more):
    provider = OpenAIProvider(openai_client=openai.AsyncOpenAI(base_url=f"{ADDRESS}/v1", api_key="x", max_retries=0))
    return Agent(OpenAIChatModel(MODEL, provider=provider), **more)


def pydantic_ai_plain():
    told = dict(instructions="You are a helpful robot.", system_prompt="Be brief.")
    result = agent(**told).run_sync("What is the capital of France?")
    assert "Paris" in result.output and result.usage.output_tokens > 0

    async def streamed():
        async with agent(**told).run_stream("What is the capital of France?") as response:
            return [text async for text in response.stream_text(delta=True)], response.usage
    texts, usage = asyncio.run(streamed())
    assert "Paris" in "".join(texts) and len(texts) > 1 and usage.output_tokens > 0


def pydantic_ai_structured():
    """The default output mode is a tool that must be called."""
    valid = 0
    for index in range(20):
        settings = ModelSettings(temperature=1.0, seed=index, max_tokens=160)
        result = agent(output_type=Robot, retries=0).run_sync("Describe a robot.", model_settings=settings)
        valid += isinstance(result.output, Robot)
    assert valid == 20, f"{valid} of 20"
    native = agent(output_type=NativeOutput(Robot), retries=0).run_sync("Describe a robot.")
    assert isinstance(native.output, Robot)


def pydantic_ai_tool():
    robot, called = agent(output_type=Place, retries=0), []

    async def once(_, tool):
        return None if called else tool

    @robot.tool_plain(prepare=once)
    def look(direction: Mood) -> str:
        """Look around."""
        called.append(direction)
        return "A hall on floor 2."
    first = robot.run_sync("Look around, then say where you are.", model_settings=ModelSettings(parallel_tool_calls=False))
    assert isinstance(first.output, Place) and all(isinstance(mood, Mood) for mood in called)


CHECKS = (plain, stream_with_usage, one_required_tool, two_tools_auto, tool_round_trip, json_schema, stop, seed, length,
          logprobs, too_long, wrong_model, completions, disconnect_frees_the_slot, queue_full, pydantic_ai_plain,
          pydantic_ai_structured, pydantic_ai_tool)
for check in CHECKS:
    check()
    print("ok", check.__name__, flush=True)
