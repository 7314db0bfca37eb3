"""Small tokenizers trained here, and what transformers makes of sentences with them.

`xlmr` holds a SentencePiece model that XLMRobertaTokenizer reads; `bert` a tokenizer.json of BertTokenizer; both with
`answers.json`: sentences, and the ids of each within `LENGTH` tokens.
"""

import json
import pathlib
import random

LENGTH = 14
WORDS = {
    "Latin": "a frog on the green leaf sits by a small pond and sings near old ships in the harbour of our town",
    "Cyrillic": "лягушка сидит на зелёном листе у пруда и поёт возле старых кораблей в гавани нашего города",
    "Greek": "ένας βάτραχος κάθεται πάνω σε ένα πράσινο φύλλο δίπλα στη λίμνη και τραγουδά κοντά στα πλοία",
    "Devanagari": "एक मेंढक हरे पत्ते पर तालाब के पास बैठा है और गाता है पुराने जहाज हमारे शहर के बंदरगाह में",
}
HAN = "青蛙坐在池塘边的绿叶上唱歌老船停在我们城市的港口"
ODD = [
    "",
    "   ",
    "Frog",
    "FROGS, ships & ponds!",
    "a  frog\ton\nthe leaf",
    "naïve café Über STRASSE straße",
    "ﬁne １２３ ｆｕｌｌ width № ½",
    "emoji 🐸🚢 and 👩‍👩‍👧 too",
    "x" * 60,
    "don't stop... the-end (really?)",
    "zero\u200bwidth and soft\u00adhyphen",
    "\u0301combining first",
    "مرحبا بالعالم שלום עולם",
    "▁ underline ▁frog",
    "a frog on the green leaf " * 8,
    "青蛙 frog лягушка",
    "ŷ ž q̃ ∑ ☃",
]


def sentences(count: int = 400, seed: int = 0) -> list[str]:
    """Random sentences in five scripts."""
    draw = random.Random(seed)
    out = []
    for _ in range(count):
        words = WORDS[draw.choice(list(WORDS))].split()
        line = " ".join(draw.choices(words, k=draw.randint(1, 9)))
        if draw.random() < 0.2:
            start = draw.randrange(len(HAN) - 4)
            line = HAN[start : start + draw.randint(2, 9)] + draw.choice(["", "。", " " + line])
        out.append(line.capitalize() if draw.random() < 0.3 else line + draw.choice(["", ".", "!", " ?"]))
    return out


def asked() -> list[str]:
    """The sentences of a case."""
    return [*ODD, *sentences(40, seed=1)]


def xlmr(folder: pathlib.Path, vocabulary: int = 260) -> None:
    """A SentencePiece model with XLM-R's settings, and XLMRobertaTokenizer's answers."""
    import io

    import sentencepiece
    from transformers import XLMRobertaTokenizer

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()),
        model_writer=model,
        vocab_size=vocabulary,
        character_coverage=0.999,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    write(folder, XLMRobertaTokenizer.from_pretrained(folder))


def bert(folder: pathlib.Path, vocabulary: int = 300) -> None:
    """A WordPiece vocabulary, and the answers of BertTokenizer, whose tokenizer.json is kept."""
    import tokenizers
    from transformers import BertTokenizer

    trained = tokenizers.BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(sentences(), vocab_size=vocabulary, min_frequency=1, show_progress=False)
    words = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = BertTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").unlink()
    write(folder, tokenizer)


def write(folder: pathlib.Path, tokenizer) -> None:
    ids = tokenizer(asked(), padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]
    answers = dict(length=LENGTH, sentences=asked(), ids=ids)
    (folder / "answers.json").write_text(json.dumps(answers, ensure_ascii=False, indent=0) + "\n")


def make(folder: pathlib.Path) -> None:
    """Both cases."""
    xlmr(folder / "xlmr")
    bert(folder / "bert")
