import sys
from types import SimpleNamespace

import function_engine
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from dynamo_core.contracts import Context, EngineContext, EngineRequest, StopConditions
from dynamo_core.errors import StartupError

WORDS = ["ann", "and", "bob", "BOB", "AND", "ANN", "?"]


@pytest.fixture
def engine(tmp_path, monkeypatch):
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setitem(sys.modules, "answers", SimpleNamespace(shout=str.upper))
    (spec,) = function_engine.dynamo_engines()

    def make(function="answers:shout"):
        return spec.factory(
            None, EngineContext(model_path=str(tmp_path), model_name="m", worker_id=1, args={"function": function})
        )

    return make


async def answer(engine, max_tokens=10, context=None):
    request = EngineRequest(id="1", token_ids=[0, 1, 2], stop=StopConditions(max_tokens=max_tokens))
    chunks = [chunk async for chunk in engine.generate(request, context or Context())]
    return [WORDS[token] for chunk in chunks for token in chunk.token_ids], chunks[-1].finish_reason


async def test_the_function_answers(engine):
    made = engine()
    await made.start()
    assert await answer(made) == (["ANN", "AND", "BOB"], "stop")
    assert await answer(made, max_tokens=2) == (["ANN", "AND"], "length")


async def test_a_stopped_request_ends(engine):
    made = engine()
    await made.start()
    context = Context()
    context.stop_generating()
    assert await answer(made, context=context) == ([], "cancelled")


@pytest.mark.parametrize("function", ["", "nowhere:f", "answers:whisper"])
async def test_a_function_that_is_not_there_is_refused_in_one_sentence(engine, function):
    with pytest.raises(StartupError, match="--engine-arg function=MODULE:NAME"):
        await engine(function).start()
