#!/usr/bin/env python3
"""An agent that looks something up with a tool and answers with a structured result.

    pip install 'pydantic-ai-slim[openai]'
    watus-build serve engines/qwen3-4b
    python3 agent.py

WATUS_URL names another server than http://localhost:8080.
"""

import os

from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelSettings
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

model = OpenAIChatModel(
    "local-trt-llm",
    provider=OpenAIProvider(base_url=os.environ.get("WATUS_URL", "http://localhost:8080") + "/v1", api_key="not-needed"),
)


class Report(BaseModel):
    """What the robot tells its operator."""

    room: str = Field(max_length=20)
    people: int = Field(ge=0, le=50)
    door_open: bool


agent = Agent(model, output_type=Report, instructions="You are the robot Watus. Look once, then report.",
              model_settings=ModelSettings(parallel_tool_calls=False, max_tokens=200))
looked = []


async def once(_, tool):
    """A small model would look for ever: the tool is offered until it has been used."""
    return None if looked else tool


@agent.tool_plain(prepare=once)
def look() -> str:
    """What the camera sees now."""
    looked.append(True)
    return "The hall. Three persons. The door is open."


result = agent.run_sync("What do you see?")
print(result.output)
print(result.usage)
