"""Makes the vocabularies of this folder and what the peers say of the texts of strings.py.

    pip install gguf regex sentencepiece protobuf xllamacpp && python make.py

bytes.gguf: byte-level, 256 bytes and merges learned on those texts without a cut, so that every cut shows in the tokens.
expected.json, "bytes": what each name of src/text/pretokenizers.json makes of the texts. The peer is llama.cpp (peer.py);
where the model's own tokenizer is known and differs (ORIGINALS), it is that, run by Python's `regex`.
pieces.gguf: SentencePiece's BPE, trained here; runs of spaces have one score, as Mistral's have. "pieces": what
SentencePiece makes of the texts with a space before the first word, without, and with extra spaces removed.
"""

import collections
import hashlib
import io
import json
import pathlib
import unicodedata

import gguf
import regex
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_pb2

import peer
from strings import STRINGS, TEXTS

HERE = pathlib.Path(__file__).parent
TABLE = json.loads((HERE.parents[2] / "src/text/pretokenizers.json").read_text())
ROWS = {name: row for row in TABLE for name in row["names"]}
# Token types; llama.cpp takes an end of turn for a control token whatever its type.
ADDED = {"<s>": 3, "</s>": 3, "<|im_end|>": 1, "<tool_call>": 4}

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
ALPHABET = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(256 + at) for at, byte in enumerate(OTHERS)}

LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
END = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN = CONTRACTIONS + "|" + LETTERS + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + END
QWEN35 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + END


def cased(without, suffix, number, newline="\\r\\n/"):
    """Words of capitals and then small letters: o200k_base's (openai/tiktoken, tiktoken_ext/openai_public.py) and its kin."""
    upper, lower = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{without}]", rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{without}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    return (f"{before}{upper}*{lower}+{suffix}|{before}{upper}+{lower}*{suffix}|{number}"
            rf"| ?[^\s\p{{L}}\p{{N}}]+[{newline}]*" + END)


O200K = cased("", CONTRACTIONS + "?", r"\p{N}{1,3}")
TEKKEN = cased("", "", r"\p{N}")
KIMI = r"\p{Han}+|" + cased(r"&&[^\p{Han}]", CONTRACTIONS + "?", r"\p{N}{1,3}", "\\r\\n")
BYTES, DIGIT = "bytes", r"\p{N}"

# (names, NFC, steps, source, why llama.cpp differs)
NFC = "llama.cpp does not compose"
ASCII = "llama.cpp tells capitals from small letters in ASCII alone, and marks not at all"
ORIGINALS = [
    ("qwen2 deepseek-r1-qwen f2llmv2", True, [QWEN, BYTES], "transformers, tokenization_qwen2.py", NFC),
    ("stablelm2", True, [QWEN, BYTES], "stabilityai/stablelm-2-1_6b, tokenization_arcade100k.py", NFC),
    ("qwen35", True, [QWEN35, BYTES], "transformers, tokenization_qwen3_5.py", NFC),
    ("command-r", True, [DIGIT, GPT2, BYTES], "transformers, tokenization_cohere.py", NFC),
    ("mpt olmo", True, [GPT2, BYTES], "transformers, tokenization_gpt_neox.py", NFC),
    ("falcon", False, [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, BYTES, r"\p{N}+", "[0-9][0-9][0-9]"],
     "tiiuae/falcon-7b, tokenizer.json: digits are looked for in the byte alphabet, which has `²` and `¼`",
     "llama.cpp looks for digits in the text"),
    ("gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m", False, [O200K, BYTES],
     "openai/tiktoken, o200k_base", ASCII),
    ("tekken pixtral", False, [TEKKEN, BYTES], "mistral-common, tekken_240718.json and tekken_240911.json (Pixtral's)",
     ASCII + "; it cuts `pixtral` as Llama 3"),
    ("kimi-k2", False, [KIMI, BYTES], "moonshotai/Kimi-K2, tokenization_kimi.py", ASCII),
    ("youtu", False, ROWS["youtu"]["split"], "the expressions as llama.cpp quotes them", ASCII),
    ("tiny_aya cohere2moe", False, ROWS["tiny_aya"]["split"], "the expressions as llama.cpp quotes them",
     ASCII + "; a word's end is another to libstdc++"),
    ("deepseek-llm", False, [*ROWS["deepseek-llm"]["split"][:-2], DIGIT, BYTES],
     "deepseek-ai/deepseek-llm-7b-base, tokenizer.json: single digits",
     "llama.cpp takes runs of digits; a space beyond ASCII is none to libstdc++"),
    ("deepseek-coder", False, [*ROWS["deepseek-coder"]["split"][:-2], DIGIT, BYTES],
     "deepseek-ai/deepseek-coder-6.7b-instruct, tokenizer.json", "a space beyond ASCII is none to libstdc++"),
]


def spell(data):
    return "".join(ALPHABET[byte] for byte in data)


def merged(sequence, left, right):
    made, at = [], 0
    while at < len(sequence):
        both = sequence[at:at + 2] == [left, right]
        made.append(left + right if both else sequence[at])
        at += 2 if both else 1
    return made


def learn(texts, count):
    """Merges, the most frequent pair first."""
    sequences, merges = [list(spell(text.encode())) for text in texts], []
    for _ in range(count):
        pairs = collections.Counter(pair for sequence in sequences for pair in zip(sequence, sequence[1:]))
        (left, right), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        merges.append((left, right))
        sequences = [merged(sequence, left, right) for sequence in sequences]
    return merges


def start(path, model, pre, tokens, types):
    """A GGUF without tensors, of an architecture we know."""
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in [(writer.add_block_count, 1), (writer.add_context_length, 128), (writer.add_embedding_length, 32),
                       (writer.add_feed_forward_length, 64), (writer.add_head_count, 2), (writer.add_head_count_kv, 2)]:
        add(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    return writer


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def isolate(text, pattern):
    cuts, end = [], 0
    for match in regex.compile(pattern, regex.V1).finditer(text):
        cuts += [text[end:match.start()], match.group()]
        end = match.end()
    return [cut for cut in [*cuts, text[end:]] if cut]


class Bytes:
    """The byte-level vocabulary."""

    def __init__(self):
        # Long runs would make long tokens.
        texts = [regex.sub(r"<tool_call>|<\|im_end\|>", "", text) for text in TEXTS if len(text) < 250]
        self.merges = learn(texts, 900)
        self.tokens = list(dict.fromkeys([*ALPHABET.values(), *(left + right for left, right in self.merges)]))
        self.tokens += list(ADDED)
        self.ids = {token: id for id, token in enumerate(self.tokens)}
        self.rank = {merge: rank for rank, merge in reversed(list(enumerate(self.merges)))}

    def write(self, path, pre):
        writer = start(path, "gpt2", pre, self.tokens, [ADDED.get(token, 1) for token in self.tokens])
        writer.add_token_merges([" ".join(merge) for merge in self.merges])
        writer.add_bos_token_id(self.ids["<s>"])
        writer.add_eos_token_id(self.ids["</s>"])
        finish(writer)

    def piece(self, piece, whole):
        if whole and piece in self.ids:
            return [self.ids[piece]]
        parts = list(piece)
        while True:
            ranked = [(self.rank[pair], at) for at, pair in enumerate(zip(parts, parts[1:])) if pair in self.rank]
            if not ranked:
                return [self.ids[part] for part in parts]
            at = min(ranked)[1]
            parts[at:at + 2] = [parts[at] + parts[at + 1]]

    def original(self, text, compose, steps, whole):
        found = []
        for part in regex.split("(" + "|".join(map(regex.escape, ADDED)) + ")", text):
            if part in ADDED:
                found.append(self.ids[part])
                continue
            pieces = [unicodedata.normalize("NFC", part) if compose else part]
            for step in steps:
                if step == BYTES:
                    pieces = [spell(piece.encode()) for piece in pieces]
                else:
                    pieces = [cut for piece in pieces for cut in isolate(piece, step)]
            found += [id for piece in pieces if piece for id in self.piece(piece, whole)]
        return found


def short(ids):
    """Long ones by their number and hash."""
    if len(ids) <= 40:
        return ids
    return f"{len(ids)} {hashlib.sha256(' '.join(map(str, ids)).encode()).hexdigest()[:16]}"


def byte_level(vocabulary):
    known = {name: original for original in ORIGINALS for name in original[0].split()}
    answers, groups, deviations = [[] for _ in TEXTS], {}, []
    for name, row in ROWS.items():
        path = HERE / "peer.gguf"
        vocabulary.write(path, name)
        opened = peer.Vocabulary(path)
        path.unlink()
        said = [opened.ids(text, special=True) for text in TEXTS]
        own = said
        if name in known:
            _, compose, steps, source, why = known[name]
            whole = row.get("ignore_merges", False)
            # Ten thousand letters take too long here, and all agree on them.
            own = [ids if len(text) > 5000 else vocabulary.original(text, compose, steps, whole)
                   for text, ids in zip(TEXTS, said)]
            differs = [at for at, (a, b) in enumerate(zip(own, said)) if a != b]
            deviations.append({"name": name, "source": source, "llama.cpp": why, "strings": differs})
            print(f"{name}: llama.cpp as the original {len(TEXTS) - len(differs)}/{len(TEXTS)}")
        of = []
        for at, ids in enumerate(map(short, own)):
            if ids not in answers[at]:
                answers[at].append(ids)
            of.append(answers[at].index(ids))
        groups.setdefault((tuple(of), opened.adds_bos), []).append(name)
    return {
        "answers": answers,
        "groups": [{"names": names, "bos": bos, "of": list(of)} for (of, bos), names in groups.items()],
        "deviations": deviations,
    }


def train(texts):
    """A model with Mistral's runs of spaces, in Mistral's order, of one score."""
    buffer = io.BytesIO()
    lines = [line for text in texts for line in text.split("\n") if line] * 3
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=buffer, model_type="bpe", vocab_size=640, character_coverage=0.98,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        max_sentence_length=100000, user_defined_symbols=["<tool_call>"], num_threads=1, minloglevel=2)
    model = model_pb2.ModelProto.FromString(buffer.getvalue())
    kept = [piece for piece in model.pieces if len(piece.piece) == 1 or set(piece.piece) != {"▁"}]
    runs = [model_pb2.ModelProto.SentencePiece(piece="▁" * run, score=-1e9)
            for run in [2, 4, 8, 5, 16, 6, 12, 13, 10, 14, 3, 9, 7, 11]]
    del model.pieces[:]
    model.pieces.extend([*kept, *runs])
    return model


def pieces():
    texts = [text for text in TEXTS if not regex.search(r"<\|im_end\|>|<s>|</s>|<tool_call>", text)]
    model = train(texts)
    writer = start(HERE / "pieces.gguf", "llama", "default", [piece.piece for piece in model.pieces],
                   [piece.type for piece in model.pieces])
    writer.add_token_scores([piece.score for piece in model.pieces])
    for add, id in [(writer.add_unk_token_id, 0), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2)]:
        add(id)
    finish(writer)
    texts = [text for text in texts if len(text) < 5000]
    texts += [before + " " * run + "x" for before in ["", "\n", "a"] for run in range(15, 120, 7)]
    # After a user-defined token, too, transformers and llama.cpp put the space of a first word; SentencePiece does not.
    user = ["a<tool_call>b <tool_call>  łąka", "<tool_call>", " <tool_call> <tool_call>x"]
    made = {"texts": texts + user}
    for name, prefix, extra in [("prefix", True, False), ("plain", False, False), ("trimmed", True, True)]:
        model.normalizer_spec.add_dummy_prefix, model.normalizer_spec.remove_extra_whitespaces = prefix, extra
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        made[name] = [short(processor.encode(text)) for text in (texts if prefix else texts + user)]
    return made


def main():
    vocabulary = Bytes()
    vocabulary.write(HERE / "bytes.gguf", "default")
    expected = {"strings": STRINGS, "bytes": byte_level(vocabulary), "pieces": pieces()}
    (HERE / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
