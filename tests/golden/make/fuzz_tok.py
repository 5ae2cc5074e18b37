#!/usr/bin/env python3
"""Random strings through tests/tools/tok_ids and Hugging Face tokenizers: ids and decoded text must be equal.
Needs tokenizers.  Usage: fuzz_tok.py TOK_IDS COUNT SEED [NAME=]tokenizer.json[.xz] ...   (NAME ending in +digits as in make_tok.py)"""
import sys, json, lzma, random, struct, subprocess, tempfile, unicodedata
from tokenizers import Tokenizer, pre_tokenizers as P
tok_ids, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
words = "the of and Hello world don't I'm WE'LL you're he'd it's naïve café e\u0301 Straße \u017f '\u017f 's 'S 'T 'Re 'LL 'm Привет мир 你好 世界 こんにちは 안녕 \u1112\u1161\u11ab العربية עברית हिन्दी ไทย 12 345 6789 3.14 ½ ² Ⅷ ٣ १२ @-@ <unk> <s> </s> <pad> <0x41> <0x0A> ▁ ▁▁ Ġ Ċ \u212b ﬁ ﬆ ß İ ı x+=1; -> != == // /* */ {} () [] <| |> <|im_start|> <|im_end|> <|endoftext|> <|begin_of_text|> <|eot_id|> <tool_call> </tool_call> <|fim_prefix|> <repo_name> <|im_start <|end_of_text|> 👨‍👩‍👧‍👦 👍🏽 🇫🇷 ❤️ 1️⃣ \ufeff \ufffd \u200b \u200d \u00ad".split()
spaces = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\r", "\t", " \n", "\n ", "\u00a0", "\u3000", "\u2003", "\u2028", "\u0085", "\u180e", "\x0b", "\x0c", "\x1c", "\x1f", "", "", "", " " * 17, "\n" * 9]
marks = [c for c in range(0x300, 0x370)] + [0x591, 0x5bf, 0x64b, 0x670, 0x93c, 0x94d, 0x9be, 0x9c7, 0xb3e, 0xb47, 0xbd7, 0xdca, 0xdcf, 0x102e, 0x1161, 0x11a8, 0x11c2, 0x1b35, 0x20d0, 0x302a, 0x3099, 0x309a, 0x110ba, 0x11127, 0x1d165, 0xfe20]
pools = [(0x20, 0x7e), (0x20, 0x7e), (0, 0x1f), (0x80, 0xff), (0x100, 0x24f), (0x370, 0x52f), (0x590, 0x6ff), (0x900, 0xdff), (0xe00, 0x11ff), (0x1e00, 0x23ff), (0x2400, 0x2bff), (0x3000, 0x30ff), (0x4e00, 0x9fff), (0xac00, 0xd7a3), (0xf900, 0xfaff), (0xfb00, 0xffff), (0x10000, 0x1ffff), (0x1f300, 0x1faff), (0x20000, 0x323af), (0xe0000, 0x10ffff), (0, 0x10ffff)]
def ch(r):
    while True:
        a, b = r.choice(pools); c = r.randint(a, b)
        if not 0xd800 <= c < 0xe000: return chr(c)
def make(r, specials):
    out = []
    for _ in range(r.choice([1, 2, 3, 5, 8, 13, 30])):
        k = r.random()
        if k < .30: out.append(r.choice(words))
        elif k < .50: out.append(r.choice(spaces) * r.choice([1, 1, 1, 2, 3]))
        elif k < .62: out.append("".join(ch(r) for _ in range(r.randint(1, 6))))
        elif k < .70: out.append(r.choice("aeoAnZ한가कஅ\u1100 3!") + "".join(chr(r.choice(marks)) for _ in range(r.randint(1, 5))))
        elif k < .78: out.append("".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(r.randint(1, 12))))
        elif k < .83: out.append("".join(r.choice("0123456789") for _ in range(r.randint(1, 9))))
        elif k < .88: out.append("".join(r.choice("!?.,;:-_'\"()[]{}<>/\\|@#$%^&*+=~`") for _ in range(r.randint(1, 6))))
        elif k < .93 and specials: out.append(r.choice(specials))
        elif k < .96: out.append(r.choice("ab \n1!é你") * r.randint(1, 70))
        else: out.append(r.choice(words).upper())
    b = "".join(out).encode()
    if r.random() < .15:  # invalid UTF-8: bytes put in, taken out, cut
        b = bytearray(b)
        for _ in range(r.randint(1, 4)):
            i = r.randint(0, len(b)); k = r.random()
            if k < .5: b[i:i] = bytes(r.choice([0x80, 0xbf, 0xc0, 0xc2, 0xe0, 0xe2, 0xed, 0xef, 0xf0, 0xf4, 0xf5, 0xff, r.randint(0, 255)]) for _ in range(r.randint(1, 3)))
            elif k < .8 and i < len(b): del b[i]
            else: del b[i:]
        b = bytes(b)
    return b
bad = 0
for a in sys.argv[4:]:
    name, path = a.split("=", 1) if "=" in a else (a, a)
    d = (lzma.open(path) if path.endswith(".xz") else open(path, "rb")).read().decode()
    t = Tokenizer.from_str(d)
    if name.endswith("+digits"): t.pre_tokenizer = P.Sequence([P.Digits(individual_digits=True), P.ByteLevel(add_prefix_space=False, use_regex=True)])
    r = random.Random(f"{seed} {name}")
    specials = [v.content for v in t.get_added_tokens_decoder().values()]
    S = [make(r, specials) for _ in range(count)]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        f.write(t.to_str()); f.flush()
        if not name.endswith("+digits"): f.seek(0); f.truncate(); f.write(d); f.flush()
        out = subprocess.run([tok_ids, f.name, "special"], input=b"".join(struct.pack("<I", len(s)) + s for s in S), capture_output=True)
    if out.returncode: print(name, "FAILED", out.stderr.decode()[:300], flush=True); bad += 1; continue
    p, wrong, wrong_text, o = 0, 0, 0, out.stdout
    for s in S:
        k, = struct.unpack_from("<I", o, p); ids = list(struct.unpack_from(f"<{k}i", o, p + 4)); p += 4 + 4 * k
        n, = struct.unpack_from("<I", o, p); text = o[p + 4:p + 4 + n].decode(); p += 4 + n
        u = s.decode(errors="replace")
        want = t.encode(u).ids
        if ids != want:
            wrong += 1
            if wrong <= 5: print(name, repr(u), "\n  ours", ids, "\n  want", want)
        elif text != t.decode(ids, skip_special_tokens=False):
            wrong_text += 1
            if wrong_text <= 3: print(name, "DECODE", repr(u), "\n  ours", repr(text), "\n  want", repr(t.decode(ids, skip_special_tokens=False)))
    print(name, count, "strings:", wrong, "with other ids,", wrong_text, "with other decoded text", flush=True)
    bad += wrong + wrong_text
sys.exit(bad != 0)
