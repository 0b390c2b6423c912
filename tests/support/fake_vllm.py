"""What `vllm serve` is to its callers, by transformers: real vLLM needs a GPU, or a processor's build and pinned libraries.

Only for the tests, which run on the real one where NINEFOLD_VLLM names it. It starts with the same arguments, wants the same
key, and answers /health and /v1/completions in the same form.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

import torch
from transformers import AutoModelForCausalLM

LOCK = Lock()


def completion(model: Any, asked: dict[str, Any]) -> dict[str, Any]:
    prompt, drawn, said = list(asked["prompt"]), [], []
    stream = torch.Generator().manual_seed(int(asked["seed"]))
    while len(drawn) < asked["max_tokens"]:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + drawn])).logits[0, -1].float()
        chances = torch.softmax(logits / asked["temperature"], -1)
        ordered, tokens = chances.sort(descending=True)
        nucleus = ordered * (ordered.cumsum(-1) - ordered < asked["top_p"])
        token = int(tokens[torch.multinomial(nucleus, 1, generator=stream)])
        drawn.append(token)
        said.append(float(torch.log_softmax(logits, -1)[token]))
        if token == model.config.eos_token_id:
            break
    return {"choices": [{"token_ids": drawn, "logprobs": {"token_logprobs": said}}]}


class Handler(BaseHTTPRequestHandler):
    model: Any = None
    longest = 0

    def do_GET(self) -> None:
        self._say(200, {})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}" or self.path != "/v1/completions":
            return self._say(401, {"error": {"message": "who are you?"}})
        assert len(asked["prompt"]) + asked["max_tokens"] <= self.longest
        with LOCK:
            return self._say(200, completion(self.model, asked))

    def _say(self, status: int, said: dict[str, Any]) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    serve, model, *options = sys.argv[1:]
    assert serve == "serve"
    given = dict(zip(options[::2], options[1::2], strict=False))
    known = [name for name in os.environ if name.endswith(("_KEY", "_TOKEN"))]
    assert known == ["VLLM_API_KEY"], f"it was told {known}"
    assert given["--host"] == "127.0.0.1"
    assert "--enable-prefix-caching" in options
    assert given["--generation-config"] == "vllm"
    Handler.longest = int(given["--max-model-len"])
    Handler.model = AutoModelForCausalLM.from_pretrained(model).eval()
    ThreadingHTTPServer(("127.0.0.1", int(given["--port"])), Handler).serve_forever()


if __name__ == "__main__":
    main()
