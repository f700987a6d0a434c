#!/usr/bin/env python3
"""Makes tests/fixtures/tokenizers: a corpus, small tokenizers in each family's exact settings, and what the
`tokenizers` library makes of the corpus with them; and chat conversations as transformers renders them.

Pinned: tokenizers 0.23.3, transformers 5.24.0, Jinja2 3.1.6, Python 3.11. Run it without arguments; the result is
the same each time. Other versions of tokenizers may know another Unicode, and then differ on new characters.

Per tokenizer: NAME/tokenizer.json, NAME/tokenizer_config.json where a family has one, NAME/expected.txt with one line
per corpus line: CRC-32 of "IDS|PLAIN|TEXT" (IDS with special tokens added and recognised, PLAIN without both, TEXT the
decoded IDS, special tokens included; ids in decimal with spaces), and after it, for the first lines, IDS.
"""

import json
import pathlib
import random
import zlib

import tokenizers
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers)

import tokenizer_chats

OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "tokenizers"
FULL_LINES = 60  # lines whose ids are written out

R3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUM| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"

EDGE = [
    "", " ", "  ", "\n", "\r\n", "\t", " \n", "\n ", "a", " a", "a ", "  a  ",
    "it's I'm you're they've we'll he'd IT'S I'M YOU'RE THEY'VE WE'LL HE'D don't DON'T 'tis ''s's",
    "it'\u017f we'\u017f 'S 's \u2019s 'l 'L'L 'r 'Re 'vE", "K\u212a \u212b \u00c5 A\u030a \ufb01 \ufb06 \u1e9b\u0323",
    "a\u0085b \u0085 \u0085\u0085c", "a\u00a0b \u00a0 \u00a0\u00a0c \u00a0.", "a\u180eb \u180e \u180e\u180ec", "\u180e", " \u180e ",
    "a\u2028b\u2029c \u2028 \u2029", "x\u3000y\u3000\u3000z \u3000", "x\u1680y\u2000z\u200ba\u202fb\u205fc\ufeffd",
    "line one\r\nline two\r\n\r\nline four\rmac\n\n\n   \n\tx", "\r\n\r\n", "\r\r\n\n", "a\n\nb\n \nc \n d\n  e", "x \r\n y\t\r\n\tz",
    " " * 40 + "x", "x" + " " * 40, " " * 200, "\t" * 17 + "x", "\n" * 33, " \t \t \n \t x", "a" * 300, "ab" * 150, "!" * 100, "'" * 50,
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 0x1F 1e-5", "\u0661\u0662\u0663\u0664 \u0966\u0967\u0968 \u0e50\u0e51 \uff11\uff12\uff13 x\u0664",
    "\u2160\u2161\u2162 \u00b2\u00b3 \u00bd\u00be \u2460\u2461 \U0001d7d8\U0001d7d9 \u3007\u4e00\u4e8c 12\u00b23", "\u096712\u0662 a1\u0663b",
    "caf\u00e9 cafe\u0301 na\u00efve nai\u0308ve \u01d5 u\u0308\u0304 U\u0304\u0308", "q\u0323\u0307 q\u0307\u0323 a\u0315\u0300\u05ae\u0301b \u0344 \u0958 \u2126",
    "\u1100\u1161\u11a8 \uac00\u11a8 \u1112\u1161\u11ab\u1100\u1173\u11af \ud55c\uae00", "\u0e33 \u0eb3 \u0f77 \u1e0b\u0323 \u1e0d\u0307 \ufb2c",
    "\uff21\uff22\uff23 \uff71\uff72 \u33a5 \u2122 \u2460 \u3392 \ufdfa \u210c \u00aa\u00ba", "\u0130stanbul \u0049\u0307 \u1e9e \u03a3\u03a3\u03c2 \u0394\u039f\u03a3 \u01c5 \u2c2f \u10a0 \u13a0",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea \u2764\ufe0f \U0001f600\U0001f601\U0001f602!!", "\u200d\u200c\u200b\u2060",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u8fd9\u662f\u6d4b\u8bd5\uff01", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\u30fc\u30c6\u30b9\u30c8\u3002", "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c \u0643\u064a\u0641\u061f \u0647\u064e\u0644\u06d4", "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e\u0964", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0419 \u0418\u0306", "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5", "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    # Characters that Unicode 11 to 17 added: letters, marks, digits, symbols.
    "\u0897 \u1c89\u1c8a \ua7cb\ua7cd\ua7da\ua7dc \ua7ce \U00010d4a\U00010d50\U00010d70 \U00010d40\U00010d41 \U00011bf0", "x\U00010ec2y \U0001e030\U0001e4d0\U0001e5d0 \U00013460",
    "\U00011de0\U00011de1 \U00016ff4 \U00016ea0 \U0001ccf0\U0001ccf1 \U0001d2c0 1\U00011f50", "\u32ff \ua7f2\ua7f3 \uab69 \U00010781 \U00011935\U00011930 \U00011938 a\u1abf\u0323 a\u1ac5\u0301\u0323",
    "\u0e3f\u20ac\u20bf\u20c0 \u00a9\u00ae \u2190\u2191 \u2200\u2203 \U0001fae0\U0001fae8\U0001fa75 \u2ffc\u31ef", "\U000e0001\U000e0020 \U0010ffff\ufffe \ufffd \ue000\uf8ff \U000f0000", "\x00a\x01b\x1fc\x7fd\x80e\x9ff\xadg",
    "<|endoftext|>", "a<|endoftext|>b", "a <|endoftext|> b <|endoftext|>", "<|endoftext|><|endoftext|>", "<|endoftext|", "|endoftext|>", "<<|endoftext|>>", "<|ENDOFTEXT|>",
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", "<s>[INST] Hi [/INST] Hello </s>", "<s> <s>  </s>a</s> a", "<unk> <pad> <mask>",
    "see<mask>here <mask> there  <mask>  x\t<mask>\n", "a <left>b  <left> c<left>", "a<right> b <right>  c<right>\n\nd", "word words keyword word. word_ \u0301word word\u0301 \u2460word word\u2460 word\u2040 word",
    "Lower LOWER lower \u0130Lower LOWERED", "<right>   <left>x <right>  <gap>  <gap><gap>", "<tool_call>\n{\"name\": \"f\"}\n</tool_call> <think>x</think>",
    "<0x41><0x0A> <0xFF> 0x41", "\u2581a \u2581 \u2581\u2581b a\u2581b \u2581", "\u0120a \u010aX \u0120", "\u00c4\u00a0 \u00e2\u0096\u0081", "a\tb\tc  d   e    f     g",
    "def f(x):\n    return x ** 2  # square\n\n\nclass A:\n\tpass\n", "for (int i = 0; i < n; i++) {\n  a[i] += b[i] * 0.5f; // sum\n}", "{\"key\": [1, 2.5, null, true], \"s\": \"a\\\"b\\u00e9\"}",
    "https://example.org/a/b?c=d&e=%20f#g user@example.com C:\\dir\\file.txt", "<html><body class=\"x\">text &amp; more</body></html>", "$x^2 + y_1 = \\frac{a}{b}$ ~ `code` ***bold*** __u__ #tag @name",
    "!!! ??? ... ,,, ;;; ::: --- ___ === +++ /// \\\\\\ ||| &&& %%% $$$ ### @@@", "\u201cquoted\u201d \u2018single\u2019 \u00abfr\u00bb \u2014 \u2013 \u2026 \u2022 \u00b7", "a.b,c;d:e!f?g-h_i/j\\k|l&m%n$o#p@q(r)s[t]u{v}w", "A\u2026B\u3002C\uff0cD\u3001E\u0964F\u06d4G\u060cH (x) |y|",
]

WORDS = {
    "en": "the of and to in a is that it was for on are with as his they at be this from have or by one had not but what all were when we there can an your which their said if do will each about how up out them then she many some so these would other into has more her two like him see time could no make than first been its who now people my made over did down only way find use may water long little very after words called just where most know get through back much before go good new write our used me man too any day same right look think also around another came come work three word must because does part even place well such here take why help put years different away again off went old number great tell men say small every found still between name should home big give air line set own under read last never us left end along while might next sound below saw something thought both few those always looked show large often together asked house world going want school important until form food keep children feet land side without boy once animals life enough took sometimes four head above kind began almost live page got earth need far hand high year mother light parts country father let night following picture being study second eyes soon times story boys since white days ever paper hard near sentence better best across during today others however sure means knew try told young miles sun ways thing whole hear example heard several change answer room sea against top turned learn point city play toward five using himself usually".split(),
    "code": "int float return if else for while struct const char void static size_t NULL def class import self None True False lambda yield async await fn let mut pub impl match use std::vector template typename auto foo_bar getName HTTPServer camelCase x1 tmp_2 i++ == != <= >= -> => :: && || ** // /* */ {} [] () ; #include #define printf(\"%d\\n\", x); a[i] = b->c; x += 1; return 0; # comment // todo /** doc */ <div> </div> <br/> &nbsp; \"string\" 'c' `tick`".split(" "),
    "ru": "\u0438 \u0432 \u043d\u0435 \u043d\u0430 \u044f \u0431\u044b\u0442\u044c \u043e\u043d \u0441 \u0447\u0442\u043e \u0430 \u043f\u043e \u044d\u0442\u043e \u043e\u043d\u0430 \u043a \u043d\u043e \u043c\u044b \u0447\u0435\u043b\u043e\u0432\u0435\u043a \u0438\u0437 \u0443 \u0442\u044b \u0441\u043a\u0430\u0437\u0430\u0442\u044c \u0432\u0440\u0435\u043c\u044f \u0433\u043e\u0434 \u043c\u043e\u0439 \u0432\u0441\u0435 \u0434\u0435\u043b\u043e \u0436\u0438\u0437\u043d\u044c".split(),
    "de": "der die und in den von zu das mit sich des auf f\u00fcr ist im dem nicht ein eine als auch es an werden aus er hat da\u00df sie nach wird bei \u00fcber Stra\u00dfe Gr\u00f6\u00dfe \u00c4pfel M\u00fcnchen".split(),
    "fr": "le la les de des un une et est que qui dans pour pas sur avec \u00eatre \u00e9t\u00e9 d\u00e9j\u00e0 o\u00f9 gar\u00e7on \u0153uvre l'eau d'accord aujourd'hui c'est".split(),
    "zh": "\u7684 \u4e00 \u662f \u4e0d \u4e86 \u5728 \u4eba \u6709 \u6211 \u4ed6 \u8fd9 \u4e2a \u4eec \u4e2d \u6765 \u4e0a \u5927 \u4e3a \u548c \u56fd \u5730 \u5230 \u4ee5 \u8bf4 \u65f6 \u8981 \u5c31 \u51fa \u4f1a \uff0c \u3002 \u3001 \uff01 \uff1f \u300a\u4e66\u300b".split(),
    "ja": "\u306e \u306b \u306f \u3092 \u305f \u304c \u3067 \u3066 \u3068 \u3057 \u308c \u3055 \u65e5\u672c \u6771\u4eac \u30b3\u30f3\u30d4\u30e5\u30fc\u30bf \u30c7\u30fc\u30bf \u3067\u3059 \u307e\u3059 \u3002 \u3001".split(),
    "ko": "\uc774 \uadf8 \uc800 \uac83 \uc218 \ub4f1 \ub4e4 \ubc0f \uc788\ub294 \ud558\ub294 \ud55c\uad6d \uc0ac\ub78c \uc2dc\uac04 \uc5b8\uc5b4 \u1112\u1161\u11ab".split(),
    "ar": "\u0641\u064a \u0645\u0646 \u0639\u0644\u0649 \u0623\u0646 \u0625\u0644\u0649 \u0647\u0630\u0627 \u0627\u0644\u062a\u064a \u0643\u0627\u0646 \u0645\u062f\u0631\u0633\u0629 \u0643\u064e\u062a\u064e\u0628\u064e \u060c \u061f".split(),
    "hi": "\u0939\u0948 \u0915\u0947 \u092e\u0947\u0902 \u0915\u0940 \u0938\u0947 \u0914\u0930 \u0915\u093e \u0915\u094b \u0939\u0940 \u0928\u0939\u0940\u0902 \u092d\u093e\u0930\u0924 \u0964 \u0967\u0968\u0969".split(),
    "emoji": "\U0001f600 \U0001f60a \U0001f389 \u2764\ufe0f \U0001f469\u200d\U0001f4bb \U0001f1eb\U0001f1f7 \U0001f44d\U0001f3fe \u2600\ufe0f \U0001f9d1\U0001f3fb\u200d\U0001f33e \u2728".split(),
    "marks": "e\u0301 a\u0308 o\u0302\u0323 n\u0303 c\u0327\u0301 s\u0323\u0307 \u0438\u0306 \u05e9\u05c1\u05bc \u0e01\u0e33 \u0915\u093c \ud55c \u1e69 \u00e5 \u212b".split(),
    "numbers": "0 7 42 100 1984 2,024 3.14 1e9 -5 50% $9.99 12:30 0xFF 1/2 \u00bd x\u00b2 \u0663\u0664 \u0967\u0968 \uff15 1st 2nd v1.2.3 192.168.0.1 123456789".split(),
    "special": "<|endoftext|> <s> </s> <|im_start|> <|im_end|> <|eot_id|> <|begin_of_text|> <unk> <mask> <left> <right> <gap> word Lower".split(),
}
GLUE = [" "] * 12 + ["", "", "  ", "   ", "\t", "\n", "\n\n", "\r\n", ", ", ". ", "; ", "-", "_", "/", "'s ", "'LL ", "\u00a0", "\u3000", " \n", "        ", "\u2028", "\u0085", "\u180e", "\u200b", "(", ") ", "\"", "! ", "? "]


def make_corpus():
    r = random.Random(20240607)
    lines = list(EDGE)
    kinds = list(WORDS)
    pool = [c for c in range(0x20, 0x30000) if not 0xD800 <= c < 0xE000]
    while len(lines) < 2100:
        mix = r.choices(kinds, k=r.choice([1, 1, 1, 2, 3])) + (["en"] if r.random() < .6 else [])
        parts = []
        for _ in range(r.choice([2, 5, 8, 12, 16])):
            word = r.choice(WORDS[r.choice(mix)])
            if r.random() < .12:
                word = r.choice([word.upper(), word.title(), word + str(r.randrange(10000)), word * 2])
            if r.random() < .02:
                word += chr(r.choice(pool))
            parts.append(word)
            parts.append(r.choice(GLUE) if r.random() < .3 else " ")
        text = "".join(parts[: len(parts) - r.choice([0, 1, 1])])
        lines.append(" " + text if r.random() < .1 else text)
    return lines


def byte_level(**options):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": True, **options})


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def special(*contents, **options):
    return [AddedToken(c, special=True, normalized=False, **options) for c in contents]


def train(lines, vocab, model=None, **stages):
    """A tokenizer trained on the corpus; the alphabet is the byte alphabet unless stages say otherwise."""
    added = stages.pop("added", [])
    first = stages.pop("first", [])
    alphabet = stages.pop("alphabet", pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(model or models.BPE())
    for name, stage in stages.items():
        setattr(tokenizer, name, stage)
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=first, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_tokens(added)
    return json.loads(tokenizer.to_str())


def template(before, pairs):
    return processors.TemplateProcessing(single=f"{before} $A", pair=f"{before} $A {before} $B", special_tokens=pairs)


LLAMA2_BYTES = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]


def train_llama2(lines, vocab, **stages):
    """Byte tokens are part of the vocabulary, not added tokens: trained as special, then taken off that list."""
    data = train([line for line in lines if line.isascii()], vocab, models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True),
                 first=[AddedToken(t, special=True, normalized=False) for t in LLAMA2_BYTES],
                 alphabet=[chr(c) for c in range(33, 127)] + ["\u2581"],
                 post_processor=template("<s>", [("<s>", 1)]),
                 decoder=decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                            decoders.Strip(" ", 1, 0)]), **stages)
    data["added_tokens"] = data["added_tokens"][:3]
    return data


def families(lines):
    out = {}
    ascii_heavy = [line for line in lines if len(line.encode()) < 2 * len(line)]
    out["gpt2"] = train(ascii_heavy, 1000, first=[AddedToken("<|endoftext|>", special=True, normalized=True)],
                        pre_tokenizer=byte_level(), post_processor=processors.ByteLevel(), decoder=decoders.ByteLevel())
    out["opt"] = train(ascii_heavy, 700, first=special("<s>", "<pad>", "</s>", "<unk>"), pre_tokenizer=byte_level(),
                       post_processor=template("</s>", [("</s>", 2)]), decoder=decoders.ByteLevel())
    gaps = [AddedToken(" " * n, special=False, normalized=True) for n in range(24, 1, -1)]
    out["neox"] = train(lines, 900, normalizer=normalizers.NFC(), first=special("<|endoftext|>", "<|padding|>"),
                        pre_tokenizer=byte_level(), post_processor=processors.ByteLevel(), decoder=decoders.ByteLevel(), added=gaps)
    out["llama3"] = train(lines, 1100, models.BPE(ignore_merges=True),
                          pre_tokenizer=pre_tokenizers.Sequence([split(R3.replace("NUM", r"\p{N}{1,3}")), byte_level(use_regex=False)]),
                          decoder=decoders.ByteLevel(),
                          added=special("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"))
    bos = next(t["id"] for t in out["llama3"]["added_tokens"] if t["content"] == "<|begin_of_text|>")
    out["llama3"]["post_processor"] = json.loads(
        with_stage(post_processor=processors.Sequence([processors.ByteLevel(trim_offsets=False),
                                                       template("<|begin_of_text|>", [("<|begin_of_text|>", bos)])])))["post_processor"]
    out["qwen2"] = train(lines, 1100, normalizer=normalizers.NFC(),
                         pre_tokenizer=pre_tokenizers.Sequence([split(R3.replace("NUM", r"\p{N}")), byte_level(use_regex=False)]),
                         post_processor=processors.ByteLevel(), decoder=decoders.ByteLevel(),
                         added=special("<|endoftext|>", "<|im_start|>", "<|im_end|>")
                         + [AddedToken(t, special=False, normalized=False) for t in ("<tool_call>", "</tool_call>", "<think>", "</think>")])
    out["smollm2"] = train(lines, 900, first=special("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
                           pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()]),
                           decoder=decoders.ByteLevel())
    out["bloom"] = train(lines, 900, first=special("<unk>", "<s>", "</s>", "<pad>"),
                         pre_tokenizer=pre_tokenizers.Sequence([split(BLOOM), byte_level(use_regex=False)]),
                         post_processor=processors.ByteLevel(), decoder=decoders.ByteLevel())
    out["llama2"] = train_llama2(lines, 1100, normalizer=normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]))
    out["mistral"] = train_llama2(lines, 1000, pre_tokenizer=pre_tokenizers.Metaspace("\u2581", prepend_scheme="first", split=False))
    return out


def with_stage(**stages):
    tokenizer = Tokenizer(models.BPE())
    for name, stage in stages.items():
        setattr(tokenizer, name, stage)
    return tokenizer.to_str()


def settings(lines):
    """Small vocabularies, each with settings that no family above has."""
    out = {}
    tiny = lambda **stages: train(lines[:600], 320, decoder=decoders.ByteLevel(), **stages)
    out["added"] = tiny(normalizer=normalizers.Lowercase(), pre_tokenizer=byte_level(), added=[
        AddedToken("<mask>", special=True, normalized=False, lstrip=True), AddedToken("<left>", special=True, normalized=False, lstrip=True),
        AddedToken("<right>", special=True, normalized=False, rstrip=True), AddedToken("<gap>", special=False, normalized=True, lstrip=True, rstrip=True),
        AddedToken("word", special=False, normalized=False, single_word=True), AddedToken("Lower", special=False, normalized=True),
        AddedToken("LOWERED", special=False, normalized=False), AddedToken("  ", special=False, normalized=False),
        AddedToken("<|endoftext|>", special=True, normalized=True), AddedToken("the", special=False, normalized=True, single_word=True)])
    out["nfkc"] = tiny(normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), pre_tokenizer=byte_level(add_prefix_space=True))
    for behavior in ("removed", "contiguous", "merged_with_previous", "merged_with_next"):
        for invert in (False, True):
            out[f"split-{behavior.replace('_', '-')}{'-invert' if invert else ''}"] = tiny(pre_tokenizer=pre_tokenizers.Sequence(
                [split(r"[\s\p{P}]", behavior, invert), byte_level(use_regex=False)]))
    out["split-string"] = tiny(pre_tokenizer=pre_tokenizers.Sequence(
        [pre_tokenizers.Split("...", "isolated"), pre_tokenizers.Split(" ", "merged_with_next"), byte_level(use_regex=False)]))
    out["llama-cpp-default"] = tiny(pre_tokenizer=pre_tokenizers.Sequence(
        [split(p) for p in (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")] + [byte_level(use_regex=False)]))
    out["digits"] = tiny(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), byte_level(use_regex=False)]))
    meta = lambda scheme, cut, **more: train([l for l in lines if l.isascii()], 400, more.pop("model", None), alphabet=[],
                                             pre_tokenizer=pre_tokenizers.Metaspace("\u2581", prepend_scheme=scheme, split=cut),
                                             decoder=decoders.Metaspace("\u2581", prepend_scheme=scheme, split=cut), first=special("<unk>", "<s>"), **more)
    out["metaspace-always"] = meta("always", True, model=models.BPE(unk_token="<unk>", fuse_unk=False))
    out["metaspace-never"] = meta("never", True, model=models.BPE(unk_token="<unk>", fuse_unk=True))
    out["metaspace-first"] = meta("first", True)  # no unk: unknown characters vanish
    out["no-decoder"] = train([l for l in lines if l.isascii()], 300, alphabet=[], first=special("<unk>"),
                              model=models.BPE(unk_token="<unk>", byte_fallback=True))  # bytes are not in its vocabulary
    return out


CONFIGS = {
    "gpt2": dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>"),
    "opt": dict(bos_token="</s>", eos_token="</s>", pad_token="<pad>", add_bos_token=True),
    "llama3": dict(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"),
    "qwen2": dict(bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>", add_bos_token=False),
    "smollm2": dict(bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"),
    "bloom": dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>"),
    "llama2": dict(bos_token={"__type": "AddedToken", "content": "<s>"}, eos_token={"__type": "AddedToken", "content": "</s>"},
                   add_bos_token=True, add_eos_token=False),
    "mistral": dict(bos_token="<s>", eos_token="</s>", add_bos_token=True, add_eos_token=False),
}

OLD_MERGES = {"gpt2", "llama2", "smollm2", "added"}  # "a b" strings instead of pairs


def write_tokenizer(name, data):
    """The file, in the older forms where a family's published file has them."""
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    if name in OLD_MERGES:
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    if name == "gpt2":  # as published: no type, no byte_fallback, no use_regex
        data["model"] = {k: v for k, v in data["model"].items() if k not in ("type", "byte_fallback", "ignore_merges")}
        data["pre_tokenizer"].pop("use_regex")
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n")
    if name in CONFIGS:
        (folder / "tokenizer_config.json").write_text(json.dumps(CONFIGS[name], indent=1) + "\n")


def expect(name, lines):
    tokenizer = Tokenizer.from_file(str(OUT / name / "tokenizer.json"))
    plain = Tokenizer.from_file(str(OUT / name / "tokenizer.json"))
    plain.encode_special_tokens = True
    rows = []
    for i, line in enumerate(lines):
        ids = tokenizer.encode(line).ids
        text = " ".join(map(str, ids))
        other = " ".join(map(str, plain.encode(line, add_special_tokens=False).ids))
        whole = f"{text}|{other}|{tokenizer.decode(ids, skip_special_tokens=False)}"
        rows.append(f"{zlib.crc32(whole.encode()):08x}" + (f" {text}" if i < FULL_LINES else ""))
    (OUT / name / "expected.txt").write_text("\n".join(rows) + "\n")


def main():
    if tokenizers.__version__ != "0.23.3":
        print(f"warning: tokenizers {tokenizers.__version__} instead of 0.23.3: ids of new characters may differ")
    OUT.mkdir(parents=True, exist_ok=True)
    lines = make_corpus()
    (OUT / "corpus.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    for name, data in {**families(lines), **settings(lines)}.items():
        write_tokenizer(name, data)
        expect(name, lines)
    tokenizer_chats.write(OUT)


if __name__ == "__main__":
    main()
