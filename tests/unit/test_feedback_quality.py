"""Which comments are too vague to train on, in scripts with and without spaces between words."""

from __future__ import annotations

import pytest

from shared.feedback_quality import is_vague


@pytest.mark.parametrize(
    "comment",
    [
        "Add details about the atmosphere of Mars",
        "火星の大気について詳しく説明してください",
        "请补充火星大气的成分和表面温度",
        "ช่วยเพิ่มรายละเอียดเกี่ยวกับดาวอังคาร",
        "화성 대기에 대해 더 설명해 주세요",
        "मंगल के वातावरण के बारे में बताओ",
        "لطفاً درباره‌ی جو مریخ بنویس",
        "Bitte ergänze die Atmosphäre des Mars",
    ],
)
def test_comment_that_says_what_to_change_is_not_vague(comment: str) -> None:
    assert not is_vague(comment)


@pytest.mark.parametrize(
    "comment",
    [
        "bad answer",
        "bad",
        "not good at all",
        "不好",
        "很差",
        "回答が悪い",
        "แย่มาก",
        "अच्छा उत्तर",
        "별로예요",
        "👎",
        "",
    ],
)
def test_comment_that_does_not_say_what_to_change_is_vague(comment: str) -> None:
    assert is_vague(comment)
