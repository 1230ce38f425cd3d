from types import SimpleNamespace

import prompt_filter
import pytest

from dynamo_core.contracts import PreparedRequest
from dynamo_core.errors import InvalidRequest


def prepare(endpoint, **body):
    request = PreparedRequest(
        id="1",
        model="m",
        endpoint=endpoint,
        principal=None,
        headers={},
        body=SimpleNamespace(**body),
        token_ids=[1],
        max_tokens=1,
    )
    prompt_filter.dynamo_prepare(request, prompt_filter.Config(words=("password", "x.y")))


@pytest.mark.parametrize(
    "content", ["my PassWord is", [{"type": "text", "text": "hello"}, {"type": "text", "text": "password"}], "about x.y."]
)
def test_a_forbidden_word_in_any_message_is_refused(content):
    with pytest.raises(InvalidRequest) as refusal:
        prepare("chat", messages=[{"role": "system", "content": "hi"}, {"role": "user", "content": content}])
    assert (refusal.value.param, refusal.value.code) == ("messages", "prompt_refused")


def test_completions_are_filtered_too():
    with pytest.raises(InvalidRequest):
        prepare("completions", prompt=["fine", "the password"])


def test_other_words_and_token_ids_pass():
    prepare("chat", messages=[{"role": "user", "content": "passwords, xzy"}, {"role": "assistant", "content": None}])
    prepare("completions", prompt=[[1, 2, 3]])
