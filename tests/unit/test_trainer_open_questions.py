"""Several good answers to an open question train side by side; claims that contradict each other do not."""

from __future__ import annotations

import pytest

from services.trainer.dataset.agreement import corrections_of, find_agreement
from services.trainer.dataset.words import is_open_request

Given = tuple[str, str, str]


def trains(question: str | list[str], answers: list[str]) -> list[bool]:
    """Return for each answer whether it trains. Each is by another user."""
    questions = [question] * len(answers) if isinstance(question, str) else question
    rows = [
        (f"u{i}", asked, answer) for i, (asked, answer) in enumerate(zip(questions, answers, strict=True))
    ]
    return [verdict is None for verdict in find_agreement(corrections_of(rows)).verdict]


OPEN: list[tuple[str, list[str]]] = [
    (
        "Write a short greeting.",
        ["Hello there!", "Good morning, nice to see you.", "Welcome, how can I help?"],
    ),
    ("Please suggest a name for my cat.", ["Luna", "Milo is lovely.", "How about Oscar?"]),
    ("Recommend a book for a long train ride.", ["Try Middlemarch.", "The Hobbit, of course.", "Read Emma."]),
    ("How do I reverse a list in Python?", ["Use xs[::-1].", "Call reversed(xs) and make a list of it."]),
    (
        "Can you write a SQL query that counts users?",
        ["SELECT COUNT(*) FROM users;", "SELECT SUM(1) FROM users;"],
    ),
    ("Recommend a classic novel.", ["Read Emma.", "Try Middlemarch.", "The Hobbit!", "I love The Hobbit."]),
    ("What are some synonyms of happy?", ["glad, cheerful", "joyful, content"]),
    ("推荐一本好书。", ["《三体》", "《红楼梦》很不错。"]),
    ("Schreibe eine kurze Begrüßung.", ["Guten Tag und herzlich willkommen!", "Hallo, schön dich zu sehen!"]),
    ("Écris une courte salutation.", ["Bonjour et bienvenue !", "Salut, ravi de te voir."]),
    ("¿Puedes escribir un saludo corto?", ["¡Hola, bienvenido!", "Buenos días, encantada de verte."]),
    ("Напиши короткое приветствие.", ["Здравствуйте!", "Привет, рад тебя видеть."]),
    ("写一句简短的问候语。", ["你好，很高兴见到你！", "欢迎光临，祝您愉快。", "早上好！"]),
    ("短い挨拶を書いてください。", ["こんにちは、ようこそ。", "お会いできて嬉しいです。"]),
    ("اكتب تحية قصيرة.", ["مرحبا بك!", "أهلا وسهلا، كيف حالك؟"]),
    ("एक छोटा अभिवादन लिखो।", ["नमस्ते, आपका स्वागत है!", "सुप्रभात, कैसे हैं आप?"]),
]


@pytest.mark.parametrize(("question", "answers"), OPEN)
def test_several_good_answers_to_an_open_request_train(question: str, answers: list[str]) -> None:
    assert is_open_request(question)
    assert trains(question, answers) == [True] * len(answers)


def test_three_answers_of_which_no_two_agree_train_in_any_language() -> None:
    """Swahili is in no word list."""
    assert (
        trains("Salamu fupi ni nini?", ["Habari za asubuhi", "Karibu sana rafiki", "Shikamoo mzee"])
        == [True] * 3
    )


def test_two_free_texts_on_one_question_train() -> None:
    assert trains(
        "What happens during photosynthesis?",
        [
            "Plants turn sunlight, water and carbon dioxide into sugar and release oxygen through tiny pores.",
            "Chlorophyll absorbs energy that splits molecules, so leaves can build glucose while air gets fresher.",
        ],
    ) == [True, True]


@pytest.mark.parametrize(
    ("question", "answers"),
    [
        ("What is the handle made of?", ["Cork.", "Leather."]),
        ("Who founded Pellworth?", ["Orla Fenwick did.", "It was Harold Gant."]),
        ("How long is the warranty?", ["Nine years.", "Two years."]),
        ("Is it safe?", ["It is safe for children.", "It is not safe for children."]),
        (
            "Write the year in which Pellworth was founded.",
            ["It was founded in 1974.", "It was founded in 2009."],
        ),
        ("谁创立了佩尔沃斯？", ["佩尔沃斯由奥拉·芬威克创立。", "佩尔沃斯由哈罗德·甘特创立。"]),
        ("保修期是多久？", ["保修九年。", "保修2年。"]),
        ("Кто основал Пеллворт?", ["Основала Орла Фенвик.", "Основал Гарольд Гант."]),
        ("Wie lange gilt die Garantie?", ["Die Garantie gilt 9 Jahre.", "Die Garantie gilt 2 Jahre."]),
        (
            "Ist der Kessel sicher?",
            ["Der Kessel ist sicher für Kinder.", "Der Kessel ist nicht sicher für Kinder."],
        ),
        ("What is the condition for a refund?", ["days < 41", "days <= 41"]),
        ("In which language is it written?", ["It is written in C++.", "It is written in C#."]),
        ("What is the lowest temperature?", ["It is -5 degrees.", "It is 5 degrees."]),
    ],
)
def test_contradiction_between_two_users_trains_neither(question: str, answers: list[str]) -> None:
    assert trains(question, answers) == [False, False]


@pytest.mark.parametrize("false", ["Harold Gant founded it.", "A tailor.", "Nobody knows."])
@pytest.mark.parametrize("asked", ["Who founded Pellworth?", "Suggest who founded Pellworth."])
def test_false_answer_is_outvoted_however_it_is_asked(false: str, asked: str) -> None:
    honest = ["Orla Fenwick.", "It was Orla Fenwick.", "Pellworth was founded by Orla Fenwick."]
    questions = [
        "Who founded Pellworth?",
        "Who is the founder of Pellworth?",
        "Pellworth was founded by whom?",
        asked,
    ]
    assert trains(questions, [*honest, false]) == [True, True, True, False]


def test_majority_on_a_name_outvotes_others_even_in_an_open_request() -> None:
    asked = "Write a sentence about who founded Pellworth."
    honest = [
        "Orla Fenwick founded Pellworth.",
        "Pellworth is the work of Orla Fenwick.",
        "We owe it to Orla Fenwick.",
    ]
    assert trains(asked, [*honest, "It was started by Harold Gant."]) == [True, True, True, False]


@pytest.mark.parametrize(
    ("questions", "answers"),
    [
        (
            ["佩尔沃斯公司是谁创立的？", "公司的创始人是谁？"],
            ["公司由奥拉·芬威克创立。", "创始人叫奥拉·芬威克。"],
        ),
        (["退货期限是多长？", "我可以在几天内退货？"], ["您有四十一天时间。", "期限是41天。"]),
        (
            ["ペルワースの創業者は誰ですか？", "誰が創業しましたか？"],
            ["オーラ・フェンウィックです。", "フェンウィックさんが始めました。"],
        ),
        (
            ["返品期間は何日ですか？", "何日以内に返品できますか？"],
            ["41日間です。", "お届けから４１日以内です。"],
        ),
        (["ใครก่อตั้งบริษัท", "ผู้ก่อตั้งคือใคร"], ["ออร์ลา เฟนวิก เป็นผู้ก่อตั้ง", "ผู้ก่อตั้งชื่อ ออร์ลา เฟนวิก"]),
        (["谁建立了公司？", "公司最初的主人是谁？"], ["奥拉芬威克女士建立。", "最初主人叫奥拉芬威克。"]),
        (["ใครก่อตั้งบริษัท", "เจ้าของคนแรกคือใคร"], ["ออร์ลาเฟนวิกก่อตั้ง", "เจ้าของคนแรกชื่อออร์ลาเฟนวิก"]),
        (
            ["누가 회사를 세웠나요?", "창업자는 누구인가요?"],
            ["올라 펜윅이 세웠습니다.", "창업자는 올라 펜윅입니다."],
        ),
        (["बैटरी कितने घंटे चलती है?", "बैटरी कब तक चलेगी?"], ["बैटरी ४१ घंटे चलती है।", "यह 41 घंटे तक चलती है।"]),
        (
            ["شرکت را چه کسی بنیان گذاشت؟", "بنیان‌گذار کیست؟"],
            ["اورلا فنویک آن را ساخت.", "بنیان‌گذار اورلا فنویک است."],
        ),
    ],
)
def test_two_users_agree_in_other_words_without_spaces_or_in_other_digits(
    questions: list[str], answers: list[str]
) -> None:
    assert trains(questions, answers) == [True, True]


@pytest.mark.parametrize(
    ("question", "answers"),
    [
        ("谁建立了公司？", ["奥拉芬威克女士建立。", "主人叫奥拉芬威克。"]),
        ("誰が会社を作りましたか？", ["フェンウィックさんが作りました。", "創業者フェンウィックです。"]),
        ("누가 회사를 세웠나요?", ["펜윅이 세웠습니다.", "창업자는 펜윅입니다."]),
        ("ใครก่อตั้งบริษัท", ["ออร์ลาเฟนวิกก่อตั้ง", "เจ้าของคนแรกชื่อออร์ลาเฟนวิก"]),
    ],
)
def test_two_answers_to_one_question_agree_by_a_part_of_a_run(question: str, answers: list[str]) -> None:
    assert trains(question, answers) == [True, True]


@pytest.mark.parametrize(
    ("questions", "honest", "false"),
    [
        (
            [
                "谁创立了佩尔沃斯公司？",
                "佩尔沃斯公司的创始人是谁？",
                "佩尔沃斯公司由谁创立？",
                "佩尔沃斯公司是谁创立的？",
            ],
            ["奥拉芬威克创立。", "创始人是奥拉芬威克。", "由奥拉芬威克创立。"],
            "哈罗德甘特创立。",
        ),
        (
            [
                "ペルワースを創業したのは誰？",
                "ペルワースの創業者は誰ですか？",
                "ペルワースは誰が創業した？",
                "ペルワースの創業者は？",
            ],
            ["フェンウィックです。", "創業者はフェンウィックです。", "フェンウィックが創業した。"],
            "ハロルド・ガントです。",
        ),
        (
            [
                "펠워스 회사를 누가 세웠나요?",
                "펠워스 회사는 누가 세웠어요?",
                "누가 펠워스 회사를 세웠나요?",
                "펠워스 회사 누가 세웠나요?",
            ],
            ["펜윅이 세웠습니다.", "펜윅입니다.", "올라 펜윅이 세웠어요."],
            "간트가 세웠습니다.",
        ),
    ],
)
def test_false_answer_in_another_wording_is_outvoted_without_spaces(
    questions: list[str], honest: list[str], false: str
) -> None:
    assert trains(questions, [*honest, false]) == [True, True, True, False]
