from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dynamo_core.errors import InvalidRequest
from dynamo_core.serving.template import ChatTemplate

GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PARTS = (
    "{%- for message in messages %}{%- if message['content'] is string %}{{ message['content'] }}{%- else %}"
    "{%- for part in message['content'] %}{%- if part.type == 'image' %}<image>{%- else %}[{{ part.text | trim }}]{%- endif %}"
    "{%- endfor %}{%- endif %}{%- endfor %}"
)
HI = [{"role": "user", "content": "Hi"}]


def render(source: Any, messages: Any = HI, /, tokens: dict[str, str] | None = None, **kwargs: Any) -> str:
    return ChatTemplate(source, tokens or {}).render(messages, **kwargs)


def refusal(source: Any, messages: Any = HI, **kwargs: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        render(source, messages, **kwargs)
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages")
    return caught.value


def test_a_conversation_is_rendered_with_its_special_tokens() -> None:
    messages = [*HI, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}]
    assert render(GEMMA, messages, tokens={"bos_token": "<bos>"}) == (
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    )
    assert render(GEMMA, HI, add_generation_prompt=False) == "<start_of_turn>user\nHi<end_of_turn>\n"


def test_blocks_leave_no_blank_lines() -> None:
    assert render("  {% for m in messages %}\n  {{ m.role }}\n  {% endfor %}\nend\n") == "  user\nend"


def test_variables_of_the_request_reach_the_template_and_win() -> None:
    source = "{{ bos_token }}{{ enable_thinking }}{{ messages | length }}"
    assert render(source, tokens={"bos_token": "<s>"}, enable_thinking=False) == "<s>False1"
    assert render(source, tokens={"bos_token": "<s>"}, bos_token="!") == "!1"
    assert render(source, messages=[]) == "1"


def test_json_is_written_as_it_is_without_html_escapes() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "<é> & 'ü'"}}]
    assert render("{{ tools | tojson }}", tools=tools) == (
        '[{"type": "function", "function": {"name": "f", "description": "<é> & \'ü\'"}}]'
    )
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}") == '{\n  "a": 2,\n  "b": 1\n}'
    assert render("{{ tools is none }}{{ documents is none }}") == "TrueTrue"


def test_loops_may_break_and_generation_blocks_are_their_body() -> None:
    assert render("{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "013"  # noqa: E501  # fmt: skip
    assert render("a{% generation %}{% set x = 1 %}b{{ x }}{% endgeneration %}c{{ x }}") == "ab1c"


def test_the_clock_can_be_read() -> None:
    years = (datetime.now(UTC) + timedelta(days=day) for day in (-1, 0, 1))
    assert render("{{ strftime_now('%Y') }}") in [f"{year:%Y}" for year in years]


def test_tools_choose_the_template_made_for_them() -> None:
    source = {"default": "plain", "tool_use": "tools"}
    assert render(source) == "plain"
    assert render(source, tools=[]) == "tools"
    assert "none named default" in refusal({"rag": "x"}).message


def test_what_a_template_refuses_is_told_to_the_client() -> None:
    error = refusal("{{ raise_exception('Roles must alternate') }}")
    assert error.message == "the model's chat template refuses these messages: Roles must alternate"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ messages[5].role.x }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.x }}",
        "{{ 1 / 0 }}",
    ],
)
def test_what_a_template_cannot_render_is_the_clients_error(source: str) -> None:
    assert "chat template" in refusal(source).message


def test_without_a_template_the_client_is_sent_to_completions() -> None:
    assert not ChatTemplate(None, {})
    assert refusal(None).message == "the model has no chat template; use /v1/completions"


def test_a_template_with_a_syntax_error_counts_as_missing() -> None:
    template = ChatTemplate("a\n{% if %}", {})
    assert not template
    with pytest.raises(InvalidRequest, match=r"has a syntax error in line 2: .*; use /v1/completions"):
        template.render(HI)


def test_no_messages_are_refused() -> None:
    assert "is empty" in refusal(GEMMA, []).message


def test_text_parts_become_one_text_unless_the_template_reads_parts() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert "\na\nb<end" in render(GEMMA, messages)
    assert render(PARTS, messages) == "[a][b]"
    assert messages[0]["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render("{% for m in messages %}{% set c = m.content %}{% for p in c %}{{ p.text }};{% endfor %}{% endfor %}", messages) == "a;b;"  # noqa: E501  # fmt: skip


def test_parts_that_are_no_text_are_refused_where_only_text_is_understood() -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    error = refusal(GEMMA, messages)
    assert (error.param, error.message) == (
        "messages.0.content", "message 0 has content of type image_url, but the model takes text only",
    )  # fmt: skip


def test_arguments_of_tool_calls_reach_the_template_as_objects() -> None:
    source = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments['a'] }}{% endfor %}{% endfor %}"

    def called(arguments: object) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]

    messages = called('{"a": [1]}')
    assert render(source, messages) == "[1]"
    assert messages == called('{"a": [1]}')
    assert render(source, called({"a": 2})) == "2"
    assert render(source, called("")) == ""
    assert "not JSON" in refusal(source, called("{a}")).message
