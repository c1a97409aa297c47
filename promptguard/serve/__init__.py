"""The guard as a service: an OpenAI-compatible server in front of models, and a playground.

Promise: no request reaches the upstream, and no byte of its answer reaches the client, before the guard allowed the
request. Where `output.check` is set the same holds for the answer. Whatever goes wrong on the way to a verdict blocks.

| route | what it does |
|---|---|
| `/v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/embeddings` | guarded, then forwarded |
| `/v1/moderations` | all 13 categories; the verdict and its certificate under `promptguard` |
| `/v1/certify` | `{"text": ...}` or `{"messages": ...}`: the whole decision |
| `/beta/litellm_basic_guardrail_api` | LiteLLM's generic guardrail |
| `/v1/models`, `/healthz`, `/readyz`, `/metrics`, `/` | models, probes, Prometheus, the playground |

Answers bear `x-promptguard-verdict` (allow, degraded, observed, error_allowed, block, error_blocked),
`x-promptguard-certificate` and `x-promptguard-request-id`; of a stream they speak of the request.

A configuration (all keys: `promptguard.serve.config`):

    upstream: {url: "http://127.0.0.1:8000/v1", key_env: UPSTREAM_KEY}
    certifier: {filter: causal, mode: wrap, threshold: threshold.json}
    limits: {seconds: 10, queue: 64, work_per_minute: 2000000}
    block_mode: refusal
    keys: [{name: app, sha256: "<hex>"}]
    audit: {path: /var/log/promptguard/audit.jsonl}  # its key in PGUARD_AUDIT__KEY

`block_mode: error` suits programs; benchmarks that count answers, such as garak, and chat pages need `refusal`.

With several workers each process has its own models, queue, buckets (a key may get its work once per worker) and audit
file, and they share the port and the numbers of `/metrics`. SIGHUP loads the configuration again: each process swaps it
between requests, on its own. `server` and `audit` settings take a restart.

What is not checked: ids, names of models, usage and log-probabilities in the upstream's answers; what tools of the
upstream fetch. Streamed answers that are not checked go out as they come.
"""
