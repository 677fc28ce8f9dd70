"""warstwa_llm/src/config.py: from Ollama to this server, nothing else changes.

The address may be given with /v1 or without: the server answers below both.
"""

# Before:
# CURRENT_MODEL = "gemini:flash"
# LLM_BASE_URL = "http://localhost:11434"

CURRENT_MODEL = "local-trt-llm"
LLM_BASE_URL = "http://localhost:8080"


def agent():
    """The agent of the robot's language layer, for today's pydantic-ai (OpenAIModel is OpenAIChatModel now)."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(CURRENT_MODEL, provider=OpenAIProvider(base_url=LLM_BASE_URL, api_key="not-needed"))
    return Agent(model=model, system_prompt="Jesteś pomocnym asystentem robota Watus.")


if __name__ == "__main__":
    import os
    LLM_BASE_URL = os.environ.get("WATUS_URL", LLM_BASE_URL)
    print(agent().run_sync("Co widzisz?").output)
