"""What is known of the fields of an OpenAI-style request.

A field that stands in no table is text. So the tables say only what is less than text (settings, whose few words no
chat template prints) and what is more: text that is not in the request, and whatever lets a client cut, drop or join
the texts that were checked, or switch a guard off. Servers name such fields differently; here are the names of all.

Sources: the API references of OpenAI, Anthropic, Azure, Cohere, Fireworks, Jina and OpenRouter; the request models of
OpenAI's Python client 3.54, LiteLLM 1.106, vLLM, SGLang, llama.cpp, Ollama, TGI, TEI and text-generation-webui.
"""

from __future__ import annotations

from promptguard.guard.reading import MEDIA

# Settings of the answer: numbers, switches and words, which no chat template prints.
SETTINGS = frozenset({
    "model", "models", "stream", "stream_options", "n", "best_of", "temperature", "top_p", "top_k", "min_p",
    "typical_p", "seed", "max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "max_tool_calls",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "length_penalty", "logprobs", "top_logprobs",
    "prompt_logprobs", "echo", "logit_bias", "service_tier", "store", "user", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "reasoning_effort", "reasoning", "verbosity", "modalities", "parallel_tool_calls",
    "truncation", "background", "include", "moderation", "encoding_format", "dimensions", "audio", "thinking", "stop",
    "stop_token_ids", "allowed_token_ids", "token_ids_logprob", "use_beam_search", "ignore_eos", "skip_special_tokens",
    "spaces_between_special_tokens", "include_stop_str_in_output", "add_generation_prompt", "continue_final_message",
    "add_special_tokens", "priority", "keep_alive", "guardrails",
})  # fmt: skip
# Words inside of them that are the format's. Beside these a setting may hold one word: several can make a sentence.
OF_SETTINGS = frozenset({
    "include_usage", "include_obfuscation", "continuous_usage_stats", "voice", "id", "format", "wav", "mp3", "flac",
    "opus", "aac", "pcm16", "model", "policy", "input", "output", "mode", "score", "block",
})  # fmt: skip
# The words that some settings may hold; any other word there is text.
_EFFORTS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max", "default", "auto"})
_THOUGHTS = _EFFORTS | {
    "type", "enabled", "disabled", "adaptive", "budget_tokens", "max_tokens", "effort", "summary", "generate_summary",
    "concise", "detailed", "exclude", "display", "summarized", "omitted", "context", "all_turns",
}  # fmt: skip
WORDS = {
    "reasoning_effort": _EFFORTS,
    "verbosity": _EFFORTS,
    "thinking": _THOUGHTS,
    "reasoning": _THOUGHTS,
    "modalities": frozenset({"text", "audio", "image"}),
    "truncation": frozenset({"disabled"}),
    "include": frozenset({
        "code_interpreter_call.outputs", "computer_call_output.output.image_url", "file_search_call.results",
        "message.input_image.image_url", "message.output_text.logprobs", "reasoning.encrypted_content",
        "web_search_call.action.sources", "web_search_call.results",
    }),
}  # fmt: skip
# Fields that are text by their nature: their own names carry nothing, so only what is inside is read.
TEXTS = frozenset({
    "tools", "functions", "tool_choice", "function_call", "response_format", "text", "metadata", "prediction",
    "instructions", "system", "suffix", "documents", "web_search_options", "stop_sequences", "guided_json",
    "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
})  # fmt: skip
# Text that is not in the request, or not as text: stored, fetched from where the client says, templates, tokens.
ELSEWHERE = frozenset({
    "previous_response_id", "conversation", "conversation_id", "thread_id", "assistant_id", "agent_id", "prompt_id",
    "preset", "cached_content", "cachedcontent", "session_params", "chat_template", "chat_template_kwargs",
    "chat_template_str", "instruction_template_str", "chat_instruct_command", "template", "raw", "prompt_embeds",
    "prompt_token_ids", "input_ids", "inputs_embeds", "input_embeds", "multi_modal_data", "context", "images",
    "image", "audio_data", "video_data", "file", "files", "mm_processor_kwargs", "kv_transfer_params",
    "bootstrap_host", "bootstrap_port", "bootstrap_room", "container", "input_file_id", "file_id", "file_ids",
    "vector_store_ids", "server_url", "connector_id", "mcp_servers", "data_sources", "datasources",
    "search_parameters",
})  # fmt: skip
# What a client may tell a chat template: of Qwen's and others' it changes the answer's beginning, and drops no text.
TEMPLATE_SWITCHES = frozenset({"enable_thinking"})
# By which a client cuts, drops or joins the texts that were checked.
CUTS = frozenset({
    "transforms", "context_management", "truncate", "truncate_prompt_tokens", "truncation_side",
    "truncation_direction", "truncation_strategy", "truncation_length", "prompt_truncation", "prompt_truncate_len",
    "context_length_exceeded_behavior", "context_overflow_policy", "contextoverflowpolicy", "context_length",
    "context_window", "num_ctx", "num_keep", "n_ctx", "n_keep", "n_discard", "shift", "max_context_length",
    "max_context_tokens", "max_input_tokens", "max_input_length", "max_prompt_tokens", "max_prompt_length",
    "max_seq_len", "max_model_len", "max_tokens_per_doc", "max_chunks_per_doc", "max_tokens_per_query",
    "additional_drop_params", "late_chunking",
})  # fmt: skip
# As their value: nothing is cut.
NO_CUT = frozenset({"none", "off", "disabled", "error", "do_not_truncate"})
# By which a client of a LiteLLM proxy or of Bedrock turns guards off or sets them; naming one to be run is no harm.
SWITCHES = frozenset({
    "disable_global_guardrails", "disable_global_guardrail", "opted_out_global_guardrails", "guardrail_config",
    "guardrailconfig",
})  # fmt: skip
# OpenRouter's plugins that add to a request or mend an answer; others compress it.
PLUGINS = frozenset({"web", "file-parser", "response-healing", "moderation", "auto-router"})
CONVERSATION = frozenset({"messages", "input", "prompt"})
KNOWN = SETTINGS | TEXTS | ELSEWHERE | CUTS | SWITCHES | CONVERSATION
# Fields inside a tool by which a client chooses whose text the model reads.
_SOURCES = MEDIA | {"server_url", "connector_id", "vector_store_ids", "container_id"}
OF_TOOLS = _SOURCES | {"skills", "skill_id"}
SCHEMAS = frozenset(
    {"parameters", "input_schema", "output_schema", "schema", "json_schema"}
)  # there any name may stand
STRUCTURES = frozenset({"tools", "functions", "tool_choice", "system", "instructions", "prediction", "suffix"})
# What no unknown field may hold.
INSIDE = _SOURCES | ELSEWHERE | CUTS | SWITCHES | CONVERSATION | {"truncation"}
