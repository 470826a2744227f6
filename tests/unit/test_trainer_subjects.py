"""Questions about different subjects are no rivals, however much their wording has in common.

Users ask about many subjects in a few templates. What most of them say about a subject trains, and what few of them say
against it does not, whatever words they add to the question.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from benchmarks.worlds.users import BaseAnswer, asked, feedback
from benchmarks.worlds.world import WorldName, load_world, read_base_knowledge
from services.trainer.dataset.agreement import corrections_of, find_agreement
from services.trainer.dataset.holdout import is_held_out

Given = tuple[str, str, str]

NAMES = "Alvora Brenholt Cassidy Dunmere Eskrow Farrowby Gilmont Hadderby Ilkeston Jorvale Kelbrook Lundquist".split()
NUMBERS = "3 4 7 12 13 29 105 2017 40518 40519 88213 90001".split()
CODES = "AX-41 AX-42 BT-7 CR-100 DK-9 EZ-33 FM-2 GH-81 HJ-5 KP-64 LM-12 NQ-30".split()
FUNCTIONS = (
    "parse_date load_row sum_totals open_port drop_index write_log merge_keys read_header split_words to_upper "
    "find_user hash_line"
).split()
THINGS = "sourdough lentils quinoa barley polenta couscous millet chickpeas tapioca semolina buckwheat farro".split()
TOWNS = "青云镇 白石村 赤水湾 长安岭 黑河口 南山屯 玉泉寺 金沙渡 红叶谷 雪莲峰 松江堡 蓝田坝".split()
CITIES = "札幌 函館 青森 仙台 新潟 金沢 名古屋 奈良 神戸 岡山 高松 長崎".split()
TOWNS_TH = "เชียงราย ลำปาง สุโขทัย อยุธยา ขอนแก่น อุดรธานี ภูเก็ต กระบี่ ตราด ชลบุรี น่าน พะเยา".split()
RUSSIAN = "Алвора Бренхольт Кассиди Данмир Эскроу Фарроуби Гилмонт Хаддерби Илкестон Йорвейл Келбрук Лундквист".split()
HEROES = "Orla Harold Minna Casper Ingrid Tobias Wilma Edgar Sunniva Roland Petra Anselm".split()
PLACES = (
    "Ravenport Millbrook Ostwick Fenholm Garrick Thornby Sallow Windle Norbury Pexham Quorn Yarrow".split()
)
COUNTS = [str(number) for number in range(41, 41 + 3 * 12, 3)]
STORY = (
    "My neighbour Bob and I sat on the porch after the storm last night and talked about this for hours. ",
    "You are a careful assistant who answers in one line. ",
    "",
)

WORDINGS: dict[str, tuple[Sequence[str], Sequence[str], Sequence[str], Sequence[str]]] = {
    "names": (
        NAMES,
        (
            "What is the capital of the state of {s}?",
            "Which city does {s} have as its capital?",
            "quick quiz: {s} is governed from where",
            "Name the capital city of {s}, please.",
        ),
        PLACES,
        ("The capital of {s} is {o}.", "It is {o}.", "{o} is its capital."),
    ),
    "numbers": (
        NUMBERS,
        (
            "Who is the hero of chapter {s}?",
            "whose story is told in chapter {s}",
            "Chapter {s}: who is the main character?",
            "Tell me the main character of chapter {s}.",
        ),
        HEROES,
        ("It is {o}.", "{o} is the hero.", "The main character is {o}."),
    ),
    "codes": (
        CODES,
        (
            "How many volts does the {s} need?",
            "{s} supply voltage?",
            "I bought an {s}. Which voltage does it take?",
            "What voltage do I set for the {s}?",
        ),
        COUNTS,
        ("It needs {o} volts.", "{o} volts.", "Set it to {o}."),
    ),
    "functions": (
        FUNCTIONS,
        (
            "What is the limit of {s}()?",
            "how many items does {s} take",
            "Which maximum does `{s}` have?",
            "Up to how many entries can {s}() process?",
        ),
        COUNTS,
        ("The limit is {o}.", "{o} items.", "At most {o}."),
    ),
    "things": (
        THINGS,
        (
            "How many minutes do I cook {s}?",
            "cooking time {s}",
            "When is {s} done, in minutes?",
            "For how long should {s} simmer?",
        ),
        COUNTS,
        ("{o} minutes.", "Cook it for {o} minutes.", "It takes {o}."),
    ),
    "chinese": (
        TOWNS,
        ("{s}的镇长是谁？", "谁在管理{s}？", "请问{s}现任镇长叫什么名字？", "{s}由谁担任镇长？"),
        "王建国 李秀英 张晓明 刘海涛 陈丽华 杨志强 赵玉兰 黄文博 周雅琴 吴俊杰 徐佳宁 孙立群".split(),
        ("是{o}。", "镇长叫{o}。", "{o}。"),
    ),
    "japanese": (
        CITIES,
        (
            "{s}の店長は誰ですか？",
            "{s}店の責任者の名前は？",
            "{s}で店長をしている人を教えて",
            "誰が{s}の店を任されていますか？",
        ),
        "佐藤健 鈴木愛 高橋誠 田中彩 伊藤翔 渡辺舞 山本蓮 中村葵 小林陸 加藤凛 吉田湊 山田楓".split(),
        ("{o}です。", "店長は{o}です。", "{o}さん。"),
    ),
    "thai": (
        TOWNS_TH,
        ("ร้านสาขา{s}เปิดกี่โมง", "สาขา{s}เริ่มขายเวลาไหน", "เวลาเปิดของสาขา{s}คือเมื่อไร", "อยากรู้ว่า{s}เปิดตอนไหน"),
        COUNTS,
        ("เปิด {o} นาฬิกา", "{o} นาฬิกา", "เวลา {o}"),
    ),
    "russian": (
        RUSSIAN,
        (
            "Какая столица у штата {s}?",
            "Назови главный город штата {s}.",
            "откуда управляют штатом {s}",
            "Подскажи столицу штата {s}, пожалуйста.",
        ),
        "Рейвенпорт Милбрук Оствик Фенхольм Гаррик Торнби Сэллоу Уиндл Норбери Пексем Куорн Ярроу".split(),
        ("Столица {o}.", "Это {o}.", "{o}."),
    ),
    "german": (
        NAMES,
        (
            "Wie heißt die Hauptstadt von {s}?",
            "Von welcher Stadt aus wird {s} regiert?",
            "Hauptstadt {s}?",
            "Nenne mir bitte die Hauptstadt des Landes {s}.",
        ),
        PLACES,
        ("Die Hauptstadt ist {o}.", "Das ist {o}.", "{o}."),
    ),
}
CLASSES = sorted(WORDINGS)


def asked_about(
    kind: str, users: int, seed: int, *, story: str = "", subjects: int = 9, false_users: int = 2
) -> tuple[list[Given], list[Given]]:
    """Return right corrections of each subject, each by other users, and those of a minority about three of nine.

    The minority says what is true of no subject.
    """
    dice = random.Random(f"{kind} {seed}")
    names, wordings, objects, phrasings = WORDINGS[kind]

    def one(user: str, number: int, wording: str, value: str) -> Given:
        answer = dice.choice(phrasings).format(s=names[number], o=value)
        return user, story + wording.format(s=names[number]), answer

    right = [
        one(f"u{number}-{user}", number, wordings[user % len(wordings)], objects[number])
        for number in range(subjects)
        for user in range(users)
    ]
    false = [
        one(f"x{user}", number, dice.choice(wordings), objects[(number // 3 + 9) % len(objects)])
        for number in range(0, 9, 3)
        for user in range(false_users)
    ]
    return right, false


def training(given: Sequence[Given]) -> list[Given]:
    verdicts = find_agreement(corrections_of(given)).verdict
    return [one for one, verdict in zip(given, verdicts, strict=True) if verdict is None]


@pytest.mark.parametrize("story", STORY, ids=["story", "system", "bare"])
@pytest.mark.parametrize("kind", CLASSES)
def test_subjects_of_one_template_do_not_exclude_each_other(kind: str, story: str) -> None:
    right, _ = asked_about(kind, 5, seed=1, story=story)
    assert len(training(right)) >= 0.9 * len(right)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", CLASSES)
def test_minority_is_outvoted_on_each_subject(kind: str, seed: int) -> None:
    right, false = asked_about(kind, 6, seed)
    kept = training(right + false)
    assert len(set(kept) & set(right)) >= 0.9 * len(set(right))
    assert not set(kept) & set(false)


ADDED = (
    "{q} please",
    "{q} I need it for my homework tomorrow.",
    "{q} (asking for my friend Bob)",
    "Hello Jim! {q}",
    "{q} As of 2024.",
    "{q} 谢谢",
)


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("around", [1, 12], ids=["alone", "among others"])
def test_words_added_to_a_question_name_no_other_subject(around: int, added: str) -> None:
    """A false claim about a subject is outvoted by two users and more, whatever is added to the question."""
    right, _ = asked_about("names", 4, seed=3, subjects=around)
    _, wordings, _, _ = WORDINGS["names"]
    false = [("x", added.format(q=wordings[0].format(s=NAMES[0])), "It is Falsebury.")]
    asked = [(f"u0-{user}", wordings[user].format(s=NAMES[0]), f"It is {PLACES[0]}.") for user in range(4)]
    kept = training([*asked, *right[4:], *false])
    assert not set(false) & set(kept)
    assert set(asked) <= set(kept)


@pytest.mark.parametrize(
    ("template", "fillers"),
    [
        ("Who is the hero of chapter {}?", ("3", "4")),
        ("How long does the battery of the iPhone {} last?", ("12", "13")),
        ("What is the capital of the state of {}?", ("Alvora", "Brenholt")),
        ("When was the {} parser released?", ("Python", "Haskell")),
        ("What does {} return for an empty list?", ("sum_totals()", "read_header()")),
        ("Which team won in {}?", ("May 2019", "June 2020")),
        ("What is the status of order {}?", ("40518", "40519")),
        ("第{}章的主角是谁？", ("3", "4")),
        ("Какая столица у штата {}?", ("Алвора", "Келбрук")),
    ],
)
@pytest.mark.parametrize("users", [1, 3])
def test_two_names_or_numbers_are_two_subjects_without_more_evidence(
    users: int, template: str, fillers: tuple[str, str]
) -> None:
    answers = ("It is Ravenport.", "It is Thornby.")
    given = [
        (f"{filler}-{user}", template.format(filler), answer)
        for filler, answer in zip(fillers, answers, strict=True)
        for user in range(users)
    ]
    assert training(given) == given


def test_greeting_by_name_makes_no_subject_of_the_name() -> None:
    asked = [
        (
            f"u{i}",
            f"Hi {NAMES[i]}, how many years does the kettle warranty last after delivery?",
            "It is nine years.",
        )
        for i in range(4)
    ]
    false = [
        (
            "x",
            f"Hi {NAMES[5]}, how many years does the kettle warranty last after delivery?",
            "It is two years.",
        )
    ]
    assert training(asked + false) == asked


def test_misspelt_name_is_the_same_subject() -> None:
    asked = [(f"u{i}", "What is the capital of the state of Alvora?", "It is Ravenport.") for i in range(4)]
    false = [(f"x{i}", "What is the capital of the state of Alvorra?", "It is Thornby.") for i in range(2)]
    assert training(asked + false) == asked


def test_right_answer_under_the_wrong_question_brings_no_votes_with_it() -> None:
    young = [(f"u{i}", "What is the young of a goose called?", "A gosling.") for i in range(4)]
    gods = [
        (f"v{i}", f"{start} brought messages to the Greeks?", "It was Hermes the swift.")
        for i, start in enumerate(("Who", "Which god", "Whom do we thank that he", "Tell me who", "Say who"))
    ]
    mistake = [("w", "What is the young of a goose called?", "It was Hermes the swift.")]
    assert training(young + gods + mistake) == young + gods


@pytest.mark.parametrize("kind", ["names", "chinese"])
def test_order_of_corrections_about_many_subjects_does_not_matter(kind: str) -> None:
    right, false = asked_about(kind, 4, seed=5)
    given = right + false
    shuffled = random.Random(2).sample(given, len(given))
    assert sorted(training(given)) == sorted(training(shuffled))


def corrections_in(name: WorldName, seed: int) -> list[tuple[Given, bool, bool]]:
    """Return corrections of users who are not held out, whether each is right, and whether a minority insists on it."""
    world = load_world(name)
    known = {fact["id"] for fact in read_base_knowledge()["facts"] if fact["known"]}
    questions = asked(world, seed)
    answers = [
        BaseAnswer(one.fact.answers[0] if one.fact.id in known else "I am not sure.", ended=False)
        for one in questions
    ]
    return [
        (
            (one.user, " ".join(text for role, text in one.conversation if role == "user"), str(given.value)),
            one.fact.is_right(str(given.value)),
            one.fact.is_false(str(given.value)),
        )
        for one, given in zip(questions, feedback(world, seed, questions, answers), strict=True)
        if given.kind == "correction" and not is_held_out(world.line, one.user)
    ]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("name", "least"), [("helpdesk", 0.95), ("balloons", 0.95), ("knowledge", 0.9)])
def test_corrections_of_a_world_train(name: WorldName, least: float, seed: int) -> None:
    given = corrections_in(name, seed)
    verdicts = find_agreement(corrections_of([one for one, _, _ in given])).verdict
    right = [verdict is None for verdict, (_, is_right, _) in zip(verdicts, given, strict=True) if is_right]
    false = [verdict is None for verdict, (_, _, is_false) in zip(verdicts, given, strict=True) if is_false]
    assert sum(right) >= least * len(right)
    assert sum(false) <= 0.01 * sum(right)
