"""Reading a model's answer takes time linear in its length, hundreds of kilobytes of nonsense included."""

import pytest
from timing import assert_linear

from trace_vlm.core.conventions import foreign_syntax
from trace_vlm.core.reasoning import parse
from trace_vlm.eval.error_classes import explain_unparsed


# Headings, tags and lists without an end, and everything that may stand between two points of an answer.
@pytest.mark.parametrize("piece", [
    "**Final Answer:** (", "[(0.1, 0.2), ", "<think>", "</think>(0.1, 0.2)", "<answer>", "<answer>(0.1, 0.2)</answer>",
    "\nAnswer: (0.1, 0.2) and ", "the answer is (", "(0.1, 0.2) ", "x=0.1, y=0.2 ", "'", '"', "(", "<", "a ", "a1 ",
    "\\left", "mug: ", "- ", "\n", "\n- mug\n", "and ",
])  # fmt: skip
def test_an_answer_is_read_in_linear_time(piece):
    length = 150_000 // len(piece)
    assert_linear(parse, piece * length)
    for text in (piece * length, f"{piece * 9}(0.3, 0.4)" * (length // 12)):
        assert_linear(lambda text: parse(f"**Final Answer:** (0.1, 0.2){text}(0.3, 0.4)"), text)


@pytest.mark.parametrize("piece", ["1", "1 ", "1,", "[1, ", "(", "<", "<|a", "<a1", "{", "0,1 ", '"point": [1', " %"])
def test_why_a_text_is_not_read_takes_linear_time(piece):
    text = piece * (150_000 // len(piece))
    assert_linear(lambda text: explain_unparsed(1, parse("The answer is (none). " + text)), text)
    assert_linear(foreign_syntax, text)
