"""Short word lists of languages: function words, negations, and beginnings of open requests.

The lists are hints, not grammars. Where a language is missing, its texts are compared with their function words, its
negations are not seen, and its open questions are recognised by their answers only (`open_questions.py`). Negation by a
suffix (Turkish `-me`) or by a prefix that is written together is not covered.

Languages with a script of their own need no guess, because their words are in no other list. Texts in the Latin script
take the language of which they contain the most function words, and English where no other has more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Language:
    """Word lists of one language, separated by spaces; `requests` are separated by commas."""

    code: str
    function_words: str
    negations: str
    requests: str
    """Beginnings of sentences that ask for one of several good answers, such as `write`. See `REQUEST_ANYWHERE`."""
    capitalises_nouns: bool = False
    """Whether every noun has a capital letter, so that one says nothing about names."""


ENGLISH: Final = Language(
    code="en",
    function_words=(
        "a about all also am an and any are as at be because been but by can could did do does doing done for "
        "from get give got had has have he her here herself him himself his how i if in into is it its itself "
        "just let like may me mean might more most must my myself no not now of off on once one only or other "
        "our ours out over own please s said say says she should so some such t tell than that the their them "
        "themselves then there these they this those through to too up us very was we were what when where "
        "which while who whom whose why will with would yes you your yours"
    ),
    negations="no not never none nobody nothing neither nor without cannot isn aren wasn don doesn didn won",
    requests=(
        "write, compose, draft, invent, create, brainstorm, suggest, recommend, propose, make up, come up with, "
        "think of, give me an example, give an example, give me some, give me a, give me ideas, tell me a joke, "
        "tell me a story, tell a joke, tell a story, rephrase, rewrite, paraphrase, translate, summarise, "
        "summarize, describe, explain, how do i, how can i, how could i, how would you, how to, how do you, how "
        "should i, why, what could i, what should i, what would you, can you write, could you write, please "
        "write, help me write, name a, name an, list some, show me a, show me an, implement, say hello, greet, "
        "reply to, name two, name three, name four, name five, name some, improve, complete, continue, finish "
        "the, correct, fix, what are some, what is a good, what are good, what would be a good, tell me "
        "something, tell me a fun fact, say something, any tips, any ideas, give me two, give me three, give me "
        "five, give me tips"
    ),
)
LATIN: Final = (
    ENGLISH,
    Language(
        code="de",
        function_words=(
            "aber als am an auch auf aus bei beim bin bis da damit dann das dass dein dem den der des die dies "
            "diese dieser dieses du ein eine einem einen einer eines er es für hat hatte haben ich ihr ihre im "
            "in ist ja kann können man mein mich mir mit nach noch nur ob oder schon sein seine sich sie sind "
            "so über um und uns unser unter vom von vor war waren was weil wenn wer werden wie wir wird wo "
            "wurde wurden zu zum zur zwischen"
        ),
        negations="nicht kein keine keinen keinem keiner keines nie niemals nichts niemand ohne weder nein",
        requests=(
            "schreib, verfass, formulier, nenn mir ein, nenne ein, gib mir ein, schlag, empfiehl, erfinde, "
            "erzähl, erklär, beschreib, übersetz, fasse, warum, wieso, wie kann ich, wie soll, wie würdest, was "
            "soll ich, kannst du mir ein, bitte schreib, verbessere, vervollständige, nenne drei, nenne zwei, "
            "was könnte ich, hast du einen tipp"
        ),
        capitalises_nouns=True,
    ),
    Language(
        code="fr",
        function_words=(
            "à alors au aussi aux avec avez c ce cela ces cet cette chez comme d dans de des donc du elle en "
            "est et était être eu fait faut il ils j je l la le les leur lui m ma mais me mes moi mon n ne nos "
            "notre nous on ont où ou par plus pour qu quand que quel quelle qui s sa se ses si son sont sur t "
            "ta te tes toi ton tout très tu un une votre vos vous y"
        ),
        negations="pas jamais rien aucun aucune sans non",
        requests=(
            "écri, rédige, compose, invente, propose, suggère, recommande, conseille, donne-moi un, donnez-moi "
            "un, raconte, explique, décri, tradui, résume, pourquoi, comment puis-je, comment faire, que "
            "puis-je, cite un, peux-tu écrire, améliore, complète, donne-moi trois, que pourrais-je, quel "
            "cadeau"
        ),
    ),
    Language(
        code="es",
        function_words=(
            "a al algo aquí así como con cual cuando cuándo de del desde donde dónde e el él ella ellos en "
            "entre era es esa ese eso esta está están este esto fue ha hasta hay la las le les lo los más me mi "
            "mis muy o para pero por porque puede que qué quien quién se según ser si sí sin sobre son su sus "
            "también te tiene todo tu un una uno unos y ya yo"
        ),
        negations="no nunca jamás nadie ningún ninguno ninguna sin tampoco",
        requests=(
            "escrib, redacta, compón, inventa, propón, sugiere, sugiéreme, recomienda, recomiéndame, dame un, "
            "dime un chiste, cuéntame, explica, describe, traduce, resume, por qué, cómo puedo, qué puedo, "
            "nombra un, puedes escribir, qué regalo, qué me recomiendas, mejora, completa, continúa, dame tres"
        ),
    ),
    Language(
        code="pt",
        function_words=(
            "a ao aos as com como da das de do dos e é ela ele eles em entre era essa esse esta está este eu "
            "foi há isso já lhe mais mas me meu minha muito na nas no nos nós o os ou para pela pelo por porque "
            "qual quando que quem se seu sua são também te tem ter um uma você"
        ),
        negations="não nunca jamais ninguém nenhum nenhuma sem",
        requests=(
            "escrev, redija, componha, invente, proponha, sugira, recomende, dê-me um, me dê um, conte, "
            "explique, descreva, traduza, resuma, por que, como posso, o que posso"
        ),
    ),
    Language(
        code="it",
        function_words=(
            "a ai al alla anche c che chi ci come con cosa cui d da dal dalla dei del della delle di dove e è "
            "ed era essere fra gli ha hai hanno ho i il in io l la le lei lo loro lui ma mi mia mio nei nel "
            "nella o per perché più può quale quando quella quello questa questo se si sono su sua sul sulla "
            "suo ti tra tu tutto un una uno vi voi"
        ),
        negations="non mai senza nessun nessuno nessuna niente nulla",
        requests=(
            "scriv, componi, inventa, proponi, suggeri, consiglia, dammi un, racconta, spiega, descrivi, "
            "traduci, riassumi, perché, come posso, cosa posso, nomina un"
        ),
    ),
    Language(
        code="nl",
        function_words=(
            "aan al als bij dan dat de den deze die dit door een en er haar heb hebben heeft het hij hoe hun ik "
            "in is je jij kan maar me meer met mijn na naar nog of om onder ons onze ook op over te tot u uit "
            "uw van voor was wat we wel werd wie wij wordt ze zich zij zijn zo zou"
        ),
        negations="niet geen nooit niemand niets zonder nee",
        requests=(
            "schrijf, verzin, bedenk, geef me een, geef een, stel een, vertel, leg uit, beschrijf, vertaal, "
            "vat, waarom, hoe kan ik, noem een, wat kan ik"
        ),
    ),
    Language(
        code="sv",
        function_words=(
            "alla att av blev bli där de den det detta dig din du efter eller en ett från för ha han hans har "
            "hon hur i jag kan kommer man med men mig min mot mycket när någon något och om oss på sig sin ska "
            "som så till under upp ut vad var vi vid vill är över"
        ),
        negations="inte aldrig ingen inget inga utan nej",
        requests="skriv, hitta på, föreslå, rekommendera, ge mig ett, berätta, förklara, beskriv, varför",
    ),
    Language(
        code="pl",
        function_words=(
            "a ale ani aby być był była było co czy dla do gdy gdzie go i ich im ja jak jako jego jej jest już "
            "który która które kto ma mi mnie można na nad o od on ona oni po pod przez przy się są ta tak tam "
            "te tego tej ten to tu ty w we z za ze że"
        ),
        negations="nie nigdy nikt nic bez żaden żadna żadne",
        requests="napisz, wymyśl, zaproponuj, poleć, podaj przykład, opowiedz, wyjaśnij, opisz, dlaczego",
    ),
    Language(
        code="tr",
        function_words=(
            "ama bana bence ben beni biz bu bunu bunun çok da daha de diye en gibi göre hangi hem her için ile "
            "ise kadar ki kim mi mı mu mü nasıl ne nedir nerede o olan olarak oldu olduğu onu onun sen şu "
            "tarafından var ve veya ya"
        ),
        negations="değil yok hayır hiç asla olmadan",
        requests="yaz, öner, anlat, açıkla, bana bir, neden, nasıl yap, çevir, özetle, bir örnek ver, kısa bir",
    ),
    Language(
        code="vi",
        function_words=(
            "ai anh bạn bị bởi các cái cho chúng có của cũng đã đang đây để đến đi đó được em gì hay hơn khi là "
            "lại làm lên mà mình một nào này nên nếu nhiều như những ở ra rất rồi sẽ số sự tại tôi thì trên "
            "trong từ và vào về với vì"
        ),
        negations="không chưa chẳng đừng",
        requests="viết, hãy viết, gợi ý, đề xuất, cho tôi một, kể, giải thích, mô tả, tại sao, làm thế nào, dịch",
    ),
    Language(
        code="id",
        function_words=(
            "ada adalah agar akan anda apa atau bagi bahwa beberapa bisa dalam dan dapat dari dengan di dia "
            "hanya harus ia ini itu juga kami karena ke kita lebih mereka oleh pada para saat saja sangat satu "
            "saya sebagai sebuah seperti sudah telah tersebut untuk yang"
        ),
        negations="tidak bukan tanpa jangan belum tak",
        requests="tulis, buat, sarankan, rekomendasikan, beri saya, ceritakan, jelaskan, mengapa, bagaimana cara",
    ),
)
"""Languages of the Latin script."""
OTHER_SCRIPTS: Final = (
    Language(
        code="ru",
        function_words=(
            "а без более был была были было бы в вам вас весь во вот все вы где да для до его ее если есть еще "
            "же за и из или им их к как какая какие какой когда кто ли меня мне может мой мы на над нам нас "
            "него но о об он она они от по под при с сам свой себя со так также такой там то только тот у уже "
            "чем что чтобы эта эти это этот я"
        ),
        negations="не нет нельзя никогда никто ничего без",
        requests="напиши, сочини, придумай, предложи, посоветуй, дай пример, приведи пример, расскажи, объясни",
    ),
    Language(
        code="uk",
        function_words=(
            "а або але б бо був була були було в вам вас ви від він вона вони все для до з за зі і із її їх й "
            "його коли кому ми мій на над нам нас о по при про с та так там те ти то тобто у цей це ця чи що "
            "щоб як яка яке який які я є"
        ),
        negations="не немає ні ніколи ніхто нічого без",
        requests="напиши, вигадай, придумай, запропонуй, порадь, наведи приклад, розкажи, поясни, опиши, чому",
    ),
    Language(
        code="el",
        function_words=(
            "από αυτή αυτό αυτός για δε εγώ είναι είχε ένα ένας έχει η ή ήταν θα και κατά με μας μια μου να ο "
            "οι ποια ποιο ποιος πολύ που πώς σας σε στα στη στην στις στο στον στους τα τη την της τι τις το "
            "τον του τους των ως"
        ),
        negations="δεν δε μη μην όχι χωρίς ποτέ κανένας",
        requests="γράψε, πρότεινε, δώσε μου ένα, πες μου ένα, εξήγησε, περιέγραψε, γιατί, πώς μπορώ",
    ),
    Language(
        code="ar",
        function_words=(
            "أن إلى أو أي إن أنا أنت التي الذي الى ان او به بها بعد بين تم ثم حتى حول خلال ذلك على عن عند في "
            "فيها قد كان كانت كل كما كيف لدى له لها ما متى مع من منذ نحن هذا هذه هل هم هو هي و وقد ولا يتم يكون"
        ),
        negations="لا لم لن ليس ليست غير بدون",
        requests="اكتب, اقترح, اعطني, أعطني, احك, اشرح, صف, لماذا, كيف يمكنني, ترجم, لخص",
    ),
    Language(
        code="fa",
        function_words=(
            "آن آنها از است اگر او ای این با باشد باید بر برای بود به بین تا تر چه چرا چند چون چگونه خود در "
            "دارد داشت را شد شده شود کجا کدام کرد کرده که کسی کی ما من می نیز ها های هر هم همین و ولی یا یک"
        ),
        negations="نه نیست نبود ندارد نشد بدون هیچ هرگز نمی",
        requests="بنویس, یک متن, پیشنهاد, یک مثال, توضیح بده, چرا, چگونه می, ترجمه کن, خلاصه کن",
    ),
    Language(
        code="he",
        function_words=(
            "אבל או אותו אחרי אל אם אני אנחנו את אתה גם ב דרך הוא היא הם היה היו הייתה הזה הזאת ו זה זו זאת יש "
            "כי כל כמה כך ל לא למה לפני מ מה מי מתי עד על עם של שלי שלו שלה תוך איפה איך"
        ),
        negations="לא אין בלי אל אינו אינה",
        requests="כתוב, כתבי, הצע, תן לי, המלץ, ספר, הסבר, תאר, למה, איך אפשר, תרגם",
    ),
    Language(
        code="hi",
        function_words=(
            "आप इस उस एक ऐसा और का कि किया की किस कुछ के को कौन क्या क्यों गई गए गया जब जा जो तक तो था थी थे "
            "दिया द्वारा ने पर भी में मैं यह या ये रहा रही लिए वह वे साथ से हम हर ही हुआ हुई हूँ है हैं हो होता "
            "होती होते"
        ),
        negations="नहीं न मत बिना ना",
        requests="लिख, एक छोटा, सुझाव, सुझा, कोई उदाहरण, बता, समझा, वर्णन, क्यों, अनुवाद",
    ),
    Language(
        code="bn",
        function_words=(
            "আমি আমার আর এ এই এক একটি এবং এর ও ওই করা করে কি কী কে কেন কোন কোথায় জন্য থেকে দিয়ে দ্বারা পর "
            "পারে বা মধ্যে যা যে সঙ্গে সাথে সে হবে হয় হয়েছে হল হলো ছিল ছিলেন"
        ),
        negations="না নয় নেই নি নাই বিনা",
        requests="লেখ, লিখ, একটি ছোট, প্রস্তাব, উদাহরণ দাও, ব্যাখ্যা, বর্ণনা, কেন, অনুবাদ",
    ),
    Language(
        code="zh",
        function_words="的是 是由 什么 怎么 这个 那个 我们 你们 他们 可以 以及 因为 所以 一个 的话",
        negations="",
        requests=(
            "写, 请写, 帮我写, 推荐, 请推荐, 建议, 给我一个, 举个, 举一个, 讲个, 讲一个, "
            "解释, 描述, 为什么, 翻译, 总结, 请问怎样, 寫, 請寫, 推薦, 請推薦, 為什麼, "
            "說個, 如何, 怎样才能, 有什么推荐, 有什么好, 请给, 列出, 完成句子, 改进"
        ),
    ),
    Language(
        code="ja",
        function_words=(
            "です ます でし まし した して てい いる いま ませ せん この その あの どの する "
            "から まで とい いう こと もの ため よう なる あり りま のは には では とは を は "
            "が に で と も の"
        ),
        negations="",
        requests=(
            "書いて, 短い挨拶, おすすめ, 提案, 例を, 教えて短い, 説明して, なぜ, 翻訳して, "
            "要約して, 考えて, 作って, どうすれば, 何がいい, いい方法, 改善して, 続けて"
        ),
    ),
    Language(
        code="ko",
        function_words="니다 습니 입니 있습 합니 하는 에서 으로 은 는 이 가 을 를 의 에",
        negations="",
        requests=("써 줘, 써줘, 작성, 추천, 제안, 예를, 설명, 왜, 번역, 요약, 지어, 어떻게 하면, 좋을까요"),
    ),
    Language(
        code="th",
        function_words="ของ ที่ และ เป็น ใน มี ได้ จะ ให้ กับ จาก นี้ นั้น ครับ ค่ะ คือ ว่า โดย",
        negations="",
        requests="เขียน, ช่วยเขียน, แนะนำ, ยกตัวอย่าง, เล่า, อธิบาย, ทำไม, แปล, สรุป, แต่ง",
    ),
)
"""Languages of other scripts. Function words of scripts without spaces are n-grams."""
REQUEST_ANYWHERE: Final = frozenset({"ja", "ko", "hi", "bn", "tr", "fa"})
"""Languages that put the verb last, so a request is recognised anywhere in a sentence."""
NEGATION_PARTS: Final = tuple("不 没 沒 未 无 無 非 ない ません なかった なし 않 없 아니 못 ไม่".split())
"""Negations of scripts that are split into n-grams."""
