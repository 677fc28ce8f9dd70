#!/usr/bin/env bash
# The server by hand. WATUS_URL names another than http://localhost:8080.
set -euo pipefail
url=${WATUS_URL:-http://localhost:8080}
json() { curl --silent --show-error --fail-with-body -H "Content-Type: application/json" "$@"; echo; }

json "$url/health"
json "$url/v1/models"
json "$url/v1/chat/completions" -d '{
  "model": "local-trt-llm", "max_tokens": 40,
  "messages": [{"role": "user", "content": "What is the capital of France?"}]}'
# Word by word (-N shows them as they come).
json -N "$url/v1/chat/completions" -d '{
  "model": "local-trt-llm", "max_tokens": 10, "stream": true, "stream_options": {"include_usage": true},
  "messages": [{"role": "user", "content": "What is the capital of France?"}]}'
# JSON of a schema, whatever the model.
json "$url/v1/chat/completions" -d '{
  "model": "local-trt-llm", "max_tokens": 60, "messages": [{"role": "user", "content": "What is the capital of France?"}],
  "response_format": {"type": "json_schema", "json_schema": {"name": "capital", "schema": {
    "type": "object", "required": ["city", "country"],
    "properties": {"city": {"type": "string", "maxLength": 20}, "country": {"enum": ["France", "Italy"]}}}}}}'
