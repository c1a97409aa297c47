"""Requests that hide text or pictures where a reader does not look, and ordinary ones that must pass."""

from __future__ import annotations

import json
from typing import Any

import pytest
from serving import BOMB, Fake, ask, config, served

from promptguard.errors import InvalidRequest
from promptguard.guard.chat_request import read_apart, read_request
from promptguard.guard.policy import Policy
from promptguard.guard.reading import read

PICTURE = {"url": "https://x.org/i.png"}
IMAGE = {"type": "image_url", "image_url": PICTURE}
SAYS: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
SCHEMA = {"type": "object", "properties": {"file_ids": {"type": "array"}, "image_url": {"type": "string"}}}


def unscannable(body: dict[str, Any]) -> tuple[str, ...]:
    found = read_request(body)
    return read(list(found.messages), Policy(), found.context).unscannable


def texts(body: dict[str, Any]) -> set[str]:
    found = read_request(body)
    return {piece.text for piece in read(list(found.messages), Policy(), found.context).pieces}


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": "hi", **fields}]}


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi", **fields}]}]}


@pytest.mark.parametrize(
    "body",
    [
        part(uuid="u", image_url=PICTURE),
        part(uuid="u", image_url=None),  # vLLM: the picture that it keeps under this name
        part(image_url="https://x.org/i.png"),
        part(Image_URL=PICTURE),
        part(file_id="file-1"),
        part(source={"type": "base64", "data": "AAAA"}),
        part(more=[IMAGE]),
        part(extras={"input_audio": {"data": "AAAA"}}),
        part(cache_control={"type": "image", "source": "x"}),
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi", "file_id": "file-1"}]}]},
        {"input": [{"type": "input_text", "text": "hi", "image_url": "https://x.org/i.png"}]},
        message(reasoning=[IMAGE]),
        message(reasoning=[{"type": "document", "source": {"data": "AAAA"}}]),
        message(annotations=[{"type": "file", "file": {"content": [IMAGE]}}]),
        message(tool_calls=[{"function": {"name": "f", "arguments": "{}"}, "image_url": PICTURE}]),
        message(audio="audio_1"),
        message(image_url="https://x.org/i.png"),
    ],
)
def test_media_beside_the_text_of_a_message_are_unscannable(body: dict[str, Any]) -> None:
    assert unscannable(body)


def test_the_body_in_a_body_is_read_as_one() -> None:
    body = {**SAYS, "extra_body": {"messages": [{"role": "user", "content": "a bomb"}], "seed": 1, "top_k": 2}}
    assert not unscannable(body)
    assert texts(body) >= {"a bomb", "hi\na bomb"}


def test_a_chat_template_may_be_told_not_to_think() -> None:
    body = {**SAYS, "chat_template_kwargs": {"enable_thinking": False}}
    assert (unscannable(body), texts(body)) == ((), texts(SAYS))


@pytest.mark.parametrize("status", [[], {}, ["a bomb"], 1, None, "a bomb"])
def test_any_status_of_an_item_is_read(status: Any) -> None:
    body = {"input": [{"role": "user", "content": "hi", "status": status}]}
    assert unscannable(body) or "hi" in texts(body)
    if isinstance(status, str):
        assert "a bomb" in texts(body)


def test_what_looks_like_a_picture_in_a_field_of_a_text_is_read() -> None:
    url = "data:;base64,how-to-make-a-bomb"
    assert url in texts(part(nobody_knows=url))


ARGUMENTS = {
    '{"q": "a \\u0062\\u006fmb"}': '{"q": "a bomb"}',
    r'{"q": "a\tbomb\/\"x\""}': '{"q": "a\tbomb/"x""}',
    r'{"q": "\ud83d\ude00 \\\\u0062"}': '{"q": "\U0001f600 \\\\u0062"}',
    r'{"q": "\ud83d bomb"}': '{"q": "\ufffd bomb"}',
    r"not \u006Ason, \x bomb": r"not json, \x bomb",
}


@pytest.mark.parametrize(("written", "opened"), ARGUMENTS.items())
def test_arguments_are_read_as_servers_open_them_too(written: str, opened: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": written}}
    for message in (
        {"role": "assistant", "tool_calls": [call]},
        {"role": "assistant", "function_call": call["function"]},
    ):
        assert texts({"messages": [message]}) >= {written, opened}
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": written}
    assert texts({"input": [item]}) >= {written, opened}


def test_what_stands_beside_media_is_still_read() -> None:
    assert texts(part(uuid="u", image_url={"url": "data:image/png;base64,AAAA", "alt": "a bomb"})) >= {"hi", "a bomb"}
    assert "data: a bomb" in texts({"messages": [{"role": "user", "content": [{"type": "x", "t": "data: a bomb"}]}]})
    assert "data:image/png;base64,AAAA" not in texts(part(image_url={"url": "data:image/png;base64,AAAA"}))


@pytest.mark.parametrize(
    "field",
    [
        {"fallbacks": [{"model": "m2", "messages": [{"role": "user", "content": [IMAGE]}]}]},
        {"fallbacks": [{"model": "m2", "messages": "hi"}]},
        {"fallbacks": [{"model": "m2", "prompt": [1, 2, 3]}]},
        {"extra_body": {"chat_template_kwargs": {"x": "y"}}},
        {"chat_template_kwargs": {"enable_thinking": "a bomb"}},
        {"chat_template_kwargs": {"enable_thinking": False, "x": False}},
        {"chat_template_kwargs": [True]},
        {"extra_body": "x"},
        {"extra_body": ["x"]},
        {"extra_body": {"previous_response_id": "r"}},
        {"extra_body": {"plugins": [{"id": "context-compression"}]}},
        {"extra_body": {"reasoning": {"context": "current_turn"}}},
        {"extra_body": {"extra_body": {"model": "@preset/x"}}},
        {"extra_body": {"messages": [{"role": "user", "content": [IMAGE]}]}},
        {"extra_body": {"Images": ["AAAA"]}},
        {"extra_body": {"prompt_token_ids": [1]}},
        {"options": {"template": "x"}},
        {"nobody_knows": {"a": [{"b": [1, 2]}]}},
        {"nobody_knows": [{"type": "input_image"}]},
        {"attachments": [{"file_id": "file-1", "tools": [{"type": "file_search"}]}]},
        {"tool_resources": {"file_search": {"vector_store_ids": ["vs_1"]}}},
        {"image_url": "https://x.org/i.png"},
        {"input_file_id": "file-1"},
        {"file_ids": ["file-1"]},
        {"system": [{"type": "image", "source": {"type": "base64", "data": "AAAA"}}]},
        {"prediction": {"type": "content", "content": [IMAGE]}},
    ],
)
def test_structures_of_other_fields_hold_no_conversation_and_no_media(field: dict[str, Any]) -> None:
    assert unscannable({**SAYS, **field})


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "mcp", "server_label": "x", "server_url": "https://x.org/mcp"},
        {"type": "mcp", "server_label": "x", "connector_id": "connector_gmail"},
        {"type": "file_search", "vector_store_ids": ["vs_1"]},
        {"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-1"]}},
        {"type": "code_interpreter", "container": "cntr_1"},
        {"type": "shell", "environment": {"type": "container_reference", "container_id": "cntr_1"}},
        {"type": "shell", "environment": {"type": "container_auto", "skills": [{"type": "inline"}]}},
        {"type": "image_generation", "input_image_mask": {"file_id": "file-1"}},
        {"type": "namespace", "tools": [{"type": "mcp", "Server_URL": "https://x.org/mcp"}]},
    ],
)
def test_tools_that_a_client_points_at_text_elsewhere_are_unscannable(tool: dict[str, Any]) -> None:
    function = {"type": "function", "function": {"name": "f"}}
    assert unscannable({"input": "hi", "tools": [function, tool]})


@pytest.mark.parametrize(
    "field",
    [
        {"truncate_prompt_tokens": 5},
        {"truncate_prompt_tokens": 0},
        {"truncate_prompt_tokens": -1},
        {"truncation": "auto"},
        {"truncation": {"type": "last_messages"}},
    ],
)
def test_a_client_may_not_cut_the_text_that_was_checked(field: dict[str, Any]) -> None:
    assert unscannable({**SAYS, **field})


@pytest.mark.parametrize(
    "body",
    [
        part(
            cache_control={"type": "ephemeral"}, id="p1", index=0, uuid=None, image_url=None, extras={"signature": "x"}
        ),
        {
            "input": [
                {
                    "type": "message",
                    "id": "msg_1",
                    "role": "assistant",
                    "status": "completed",
                    "content": [
                        {
                            "type": "output_text",
                            "text": "hi",
                            "annotations": [{"type": "file_citation", "file_id": "file-1", "index": 1}],
                            "logprobs": [{"token": "hi", "bytes": [104], "logprob": -1, "top_logprobs": []}],
                        }
                    ],
                },
                {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "why"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"image_url": "x"}'},
            ]
        },
        message(tool_calls=[{"type": "function", "id": "c", "function": {"arguments": {"image_url": "x"}}}]),
        message(annotations=[{"type": "url_citation", "url_citation": {"url": "https://x.org", "start_index": 0}}]),
        message(refusal=None, audio=None, function_call=None, tool_calls=None, annotations=[]),
        {**SAYS, "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]},
        {**SAYS, "tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}]},
        {**SAYS, "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}]},
        {**SAYS, "functions": [{"name": "f", "parameters": SCHEMA}]},
        {**SAYS, "tools": [{"type": "web_search"}, {"type": "code_interpreter", "container": {"type": "auto"}}]},
        {**SAYS, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
        {**SAYS, "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}},
        {**SAYS, "metadata": {"file": "a.txt", "context": "x"}, "documents": [{"file": "a.txt", "text": "x"}]},
        {**SAYS, "provider": {"order": ["a", "b"], "max_price": {"prompt": None, "image": None}}},
        {**SAYS, "fallbacks": ["m2", "m3"], "plugins": [{"id": "web", "max_results": 3}]},
        {**SAYS, "truncation": "disabled", "truncate_prompt_tokens": None},
        {**SAYS, "truncation": None, "tool_choice": {"type": "function", "function": {"name": "f"}}},
    ],
)
def test_ordinary_requests_are_read_whole(body: dict[str, Any]) -> None:
    assert unscannable(body) == ()


@pytest.mark.parametrize(
    "value", ["Say_it.How_to_build_a_bomb", {"effort": "a_bomb"}, {"a_bomb": 1}, {"summary": ["a_bomb"]}]
)
@pytest.mark.parametrize("name", ["reasoning_effort", "verbosity", "thinking", "reasoning", "modalities", "truncation"])
def test_settings_with_fixed_words_hold_no_others(name: str, value: Any) -> None:
    assert any("bomb" in text for text in read_request({name: value}).context)


@pytest.mark.parametrize("name", ["stop", "include", "models", "user", "guardrails"])
def test_several_words_are_a_text(name: str) -> None:
    words = ["how", "to", "build", "a", "bomb"]
    assert read_request({name: words}).context == (" ".join(words),)
    assert set(read_request({name: [words, "x"]}).context) == {*words, "x"}
    assert set(read_request({name: ["a cake", "bomb"]}).context) == {"a cake", "bomb"}


def test_the_words_of_the_formats_are_no_text() -> None:
    body = {
        "reasoning_effort": "xhigh", "verbosity": "low", "thinking": {"type": "enabled", "budget_tokens": 1024},
        "reasoning": {"effort": "high", "summary": "auto", "exclude": False}, "modalities": ["text", "audio"],
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"], "truncation": "disabled",
        "stop": ["</s>"], "stop_token_ids": [1, 2], "models": [], "audio": {"voice": "alloy", "format": "mp3"},
    }  # fmt: skip
    found = read_request(body)
    assert (found.messages, found.context) == ((), ())


def test_prompts_and_their_suffix_are_checked_side_by_side() -> None:
    assert "a bomb" in texts({"suffix": "mb", "prompt": "a bo"})
    assert "a bomb" in texts({"prompt": ["a bo", "mb"]})
    assert "a bomb" in texts({"prompt": ["a ", "bo"], "suffix": "mb"})
    assert "a\nbomb\na" in texts({"prompt": "bomb", "suffix": "a"})  # a model for filling in may see the suffix first
    assert texts({"prompt": "a cake", "suffix": None}) == texts({"prompt": "a cake", "suffix": ""}) == {"a cake"}
    assert unscannable({"prompt": ["a cake", [1, 2]]})
    assert unscannable({"prompt": "a cake", "suffix": [IMAGE]})


@pytest.mark.parametrize(
    "call",
    [
        {"texts": ["a bomb"], "input": "cake"},
        {"texts": ["cake"], "input": "a bomb"},
        {"structured_messages": [{"role": "user", "content": "a bomb"}], "messages": [], "texts": ["cake"]},
        {"structured_messages": ask("a bomb")["messages"], "messages": ask("cake")["messages"], "texts": ["cake"]},
        {"texts": ["cake"], "messages": ask("a bomb")["messages"]},
        {"texts": ["cake"], "input": "cake", "tool_calls": [{"function": {"name": "f", "arguments": "a bomb"}}]},
    ],
)
def test_no_field_of_a_guardrail_call_replaces_another(call: dict[str, Any]) -> None:
    with served(config(BOMB)) as client:
        assert client.post("/beta/litellm_basic_guardrail_api", json=call).json()["action"] == "BLOCKED"
        passed = {"texts": ["cake"], "input": "cake", "messages": ask("cake")["messages"]}
        assert client.post("/beta/litellm_basic_guardrail_api", json=passed).json() == {"action": "NONE"}


def test_the_server_forwards_none_of_it() -> None:
    fake = Fake()
    tool = {"type": "mcp", "server_label": "x", "server_url": "https://x.org/mcp"}
    with served(config(), fake) as client:
        for path, body in (
            ("chat/completions", {"model": "m", **part(uuid="u", image_url=PICTURE)}),
            ("chat/completions", {"model": "m", **SAYS, "truncate_prompt_tokens": 5}),
            ("responses", {"model": "m", "input": "hi", "tools": [tool]}),
            ("completions", {"model": "m", "prompt": "a bo", "suffix": "mb"}),
        ):
            assert client.post(f"/v1/{path}", json=body).status_code == 400
    assert fake.bodies == []


# Cuts, switches, and what else a client decides about the text that was checked


@pytest.mark.parametrize(
    "field",
    [
        {"transforms": ["middle-out"]},
        {"plugins": [{"id": "web"}, {"id": "context-compression"}]},
        {"plugins": ["context-compression"]},
        {"plugins": [{"id": "web", "messages": ["x"]}]},
        {"plugins": [{"engine": "x"}]},
        {"context_management": [{"type": "compaction", "compact_threshold": 1000}]},
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
        {"extra_body": {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}},
        {"options": {"num_ctx": 512}},
        {"options": {"num_keep": 4}},
        {"num_ctx": 512},
        {"n_keep": -1},
        {"truncate": True},
        {"truncate": "END"},
        {"truncate": 5},
        {"truncation_direction": "Left"},
        {"truncation_side": "left"},
        {"parameters": {"truncate": 5}},
        {"parameters": {"truncation": "only_first"}},
        {"prompt_truncation": "AUTO"},
        {"prompt_truncate_len": 100},
        {"context_length_exceeded_behavior": "truncate"},
        {"max_tokens_per_doc": 10},
        {"max_input_tokens": 10},
        {"max_context_length": 10},
        {"Truncate": "END"},
        {"additional_drop_params": ["messages[1]"]},
        {"late_chunking": True},
        {"reasoning": {"effort": "low", "context": "current_turn"}},
    ],
)
def test_no_field_of_any_server_cuts_what_was_checked(field: dict[str, Any]) -> None:
    assert unscannable({**SAYS, **field})


@pytest.mark.parametrize(
    "field",
    [
        {"preset": "mine"},
        {"model": "m@preset/mine"},
        {"models": ["m", "@preset/mine"]},
        {"session_params": {"id": "s", "offset": 3}},
        {"mcp_servers": [{"type": "url", "url": "https://x.org", "name": "x"}]},
        {"data_sources": [{"type": "azure_search", "parameters": {"endpoint": "https://x.org"}}]},
        {"extra_body": {"google": {"cached_content": "cachedContents/1"}}},
        {"bootstrap_host": "10.0.0.1"},
        {"input_embeds": [[0.1]]},
        {"prompt_id": "mine"},
        {"thread_id": "thread_1"},
    ],
)
def test_text_that_other_servers_keep_or_fetch_is_unscannable(field: dict[str, Any]) -> None:
    assert unscannable({**SAYS, **field})


# Said a second time here, so that no name is lost from the tables unnoticed.
NAMES = """
    additional_drop_params agent_id assistant_id audio_data bootstrap_host bootstrap_port bootstrap_room cached_content
    cachedContent chat_instruct_command chat_template chat_template_kwargs chat_template_str connector_id container
    context context_length context_length_exceeded_behavior context_management context_overflow_policy context_window
    contextOverflowPolicy conversation conversation_id data_sources datasources disable_global_guardrail
    disable_global_guardrails file file_id file_ids files guardrail_config guardrailConfig image images input_embeds
    input_file_id input_ids inputs_embeds instruction_template_str kv_transfer_params late_chunking max_chunks_per_doc
    max_context_length max_context_tokens max_input_length max_input_tokens max_model_len max_prompt_length
    max_prompt_tokens max_seq_len max_tokens_per_doc max_tokens_per_query mcp_servers mm_processor_kwargs
    multi_modal_data n_ctx n_discard n_keep num_ctx num_keep opted_out_global_guardrails preset previous_response_id
    prompt_embeds prompt_id prompt_token_ids prompt_truncate_len prompt_truncation raw search_parameters server_url
    session_params shift template thread_id transforms truncate truncate_prompt_tokens truncation_direction
    truncation_length truncation_side truncation_strategy vector_store_ids video_data
"""


@pytest.mark.parametrize("name", NAMES.split())
def test_fields_that_hide_or_cut_text_are_unscannable_at_any_depth(name: str) -> None:
    assert unscannable({**SAYS, name: "x"})
    assert unscannable({**SAYS, "nobody_knows": [{"deep": {name: "x"}}]})


@pytest.mark.parametrize("name", ["messages", "input", "prompt", "truncation"])
def test_no_other_field_holds_a_conversation(name: str) -> None:
    assert unscannable({**SAYS, "nobody_knows": [{name: "hi"}]})
    assert unscannable({**SAYS, name.upper(): "hi"})


@pytest.mark.parametrize(
    "field",
    [
        {"functions": [{"name": "f", "server_url": "https://x.org/mcp"}]},
        {"tool_choice": {"type": "mcp", "server_url": "https://x.org/mcp"}},
        {"instructions": [IMAGE]},
        {"tools": [{"type": "shell", "skill_id": "skill_1"}]},
        {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "AAAA"}]},
    ],
)
def test_structures_that_are_read_bring_no_text_from_elsewhere(field: dict[str, Any]) -> None:
    assert unscannable({**SAYS, **field})


def test_every_word_of_an_item_is_read_unless_it_is_the_format_s() -> None:
    for field in ({"status": "a bomb"}, {"type": "a bomb"}):
        assert "a bomb" in texts({"input": [{"role": "user", "content": "hi", **field}]})


@pytest.mark.parametrize("name", ["documents", "metadata", "tools", "nobody_knows"])
def test_a_field_that_is_nested_too_deep_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="too deep"):
        read_request({name: json.loads("[" * 50 + "]" * 50)})


@pytest.mark.parametrize(
    "field",
    [
        {"disable_global_guardrails": True},
        {"metadata": {"disable_global_guardrails": True}},
        {"metadata": {"opted_out_global_guardrails": ["pguard"]}},
        {"extra_body": {"disable_global_guardrail": True}},
        {"guardrails": [{"pguard": {"extra_body": {"threshold": 2}}}]},
        {"guardrails": {"enabled": False}},
        {"guardrail_config": {"language": "x"}},
        {"guardrailConfig": {"guardrailIdentifier": "x"}},
    ],
)
def test_a_client_may_not_switch_guards_off_or_set_them(field: dict[str, Any]) -> None:
    assert unscannable({**SAYS, **field})


@pytest.mark.parametrize(
    "field",
    [
        {"transforms": []},
        {"truncate": False},
        {"truncate": "NONE"},
        {"prompt_truncation": "OFF"},
        {"context_management": None},
        {"context_length_exceeded_behavior": "error"},
        {"late_chunking": False},
        {"plugins": [{"id": "web", "search_prompt": "x"}, {"id": "file-parser", "pdf": {"engine": "native"}}]},
        {"route": "fallback", "provider": {"order": ["a"], "allow_fallbacks": False, "sort": "price"}},
        {"guardrails": ["pguard", "other"]},
        {"guardrails": []},
        {"metadata": {"disable_global_guardrails": False, "trace": "x"}},
        {"reasoning": {"context": "all_turns"}},
        {"allowed_token_ids": [1, 2], "token_ids_logprob": [3]},
        {"cache_prompt": True, "id_slot": 1, "samplers": ["top_k"], "mock_response": "x"},
        {"model": "vendor/model:free", "models": ["a", "b"]},
    ],
)
def test_what_cuts_and_switches_nothing_passes(field: dict[str, Any]) -> None:
    assert unscannable({**SAYS, **field}) == ()


def test_a_bias_is_of_tokens_and_anything_else_is_text() -> None:
    for value in ({"15043": 5, "1": -100}, [[15043, 1.5], [2, False]], {}, None):
        assert read_request({"logit_bias": value}).context == ()
    assert "bomb" in texts({"logit_bias": {"a": 1, "bomb": 100}})
    assert "bomb" in texts({"logit_bias": [["bomb", 100]]})
    assert "bomb" in texts({"logit_bias": {"1": "bomb"}})


@pytest.mark.parametrize("name", ["user", "stream_options", "audio", "moderation", "service_tier", "n"])
def test_names_of_fields_inside_a_setting_are_words_too(name: str) -> None:
    assert {"build", "bomb"} <= texts({name: {"how": {"to": "build"}, "a": "bomb"}})
    assert {"alloy", "bomb"} <= texts({name: {"voice": {"voice": "alloy"}, "format": "bomb"}})
    assert {"build", "bomb"} <= texts({name: {"build": 1, "bomb": 2}})


def test_settings_that_are_objects_are_no_text() -> None:
    settings = {
        "audio": {"voice": {"id": "voice_1"}, "format": "pcm16"},
        "stream_options": {"include_usage": True, "include_obfuscation": False},
        "moderation": {"model": "omni", "policy": {"input": {"mode": "block"}, "output": {"mode": "score"}}},
    }
    assert read_request(settings).context == ()


# Inputs


def joined(found: Any) -> set[str]:
    return {piece.text for piece in read(list(found.messages), Policy(), found.context).pieces}


def test_inputs_are_joined_unless_they_are_read_apart() -> None:
    body = {"model": "m", "input": ["a bo", "mb"], "instruction": "Find"}
    assert "a bomb" in texts({"input": ["a bo", "mb"]})
    apart = [joined(found) for found in read_apart(body)]
    assert len(apart) == 2
    assert not any("a bomb" in found for found in apart)
    assert [("a bo" in found, "mb" in found) for found in apart] == [(True, False), (False, True)]
    assert all("instruction\nFind" in found for found in apart)  # a server may put it before each


@pytest.mark.parametrize(
    "body",
    [{"input": [1, 2]}, {"input": [[1], "hi"]}, {"input": "hi", "file_id": "f"}, {"input": ["a", "b"], "file_id": "f"}],
)
def test_what_is_read_apart_is_unscannable_where_it_would_be(body: dict[str, Any]) -> None:
    assert unscannable(body)
    assert all(read(list(found.messages), Policy(), found.context).unscannable for found in read_apart(body))


def test_reading_apart_keeps_what_is_no_list_of_texts() -> None:
    bodies: list[dict[str, Any]] = [{}, {"input": []}, {"input": "hi"}, ask("a bomb")]
    for body in bodies:
        (found,) = read_apart(body)
        assert found == read_request(body)
    with pytest.raises(InvalidRequest):
        read_apart([])
