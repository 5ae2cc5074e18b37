#!/usr/bin/env python3
"""Small tokenizers of many kinds, and what the real library makes of the strings of tok_vectors.json -> tok_small.json.
Needs tokenizers.  Usage: make_tok_small.py OUT.json TRAINING.txt tok_vectors.json"""
import json, sys, tokenizers
from tokenizers import Tokenizer, models as M, trainers as T, pre_tokenizers as P, normalizers as N, Regex
text = open(sys.argv[2]).read()[:60000].split("\n")
S = json.load(open(sys.argv[3]))["strings"] + ["Hello the  of", "aHello Hello", " \t<tool_call>\n x", "x of, off", "ab1 2ab  cab", "\u00e9te\u0301 e\u0301", "\U00011938\U0001e08fa\u0301", "\u061d a\u09fd.", "123 4567 \u216b", "\ufc5e\u00a0x", "<0x41><0x0A>", "\u2581a \u2581 b\u2581"]
TEMPLATE = dict(type="TemplateProcessing", single=[dict(SpecialToken=dict(id="<s>", type_id=0)), dict(Sequence=dict(id="A", type_id=0))], pair=[dict(Sequence=dict(id="A", type_id=0)), dict(Sequence=dict(id="B", type_id=1))], special_tokens={"<s>": dict(id="<s>", ids=[1], tokens=["<s>"])})
UNSPM = dict(type="Sequence", decoders=[dict(type="Replace", pattern=dict(String="\u2581"), content=" "), dict(type="ByteFallback"), dict(type="Fuse"), dict(type="Strip", content=" ", start=1, stop=0)])
META = lambda scheme, split=True: dict(type="Metaspace", replacement="\u2581", prepend_scheme=scheme, split=split)
ADDED = [dict(content="Hello", single_word=True), dict(content=" the ", lstrip=True, rstrip=True), dict(content="\n\n"), dict(content="of", single_word=True, normalized=True), dict(content="\u00e9", normalized=True), dict(content="<tool_call>", normalized=True, lstrip=True, rstrip=True)]
out = []
def finish(name, d, added, old_merges=False):
    v, n = d["model"]["vocab"], len(d["model"]["vocab"])
    for a in added:
        i = v.get(a["content"], n); n += i == n
        d["added_tokens"].append(dict(dict(id=i, single_word=False, lstrip=False, rstrip=False, normalized=False, special=False), **a))
    if old_merges: d["model"]["merges"] = [" ".join(m) for m in d["model"]["merges"]]
    t = Tokenizer.from_str(json.dumps(d))
    ids = [t.encode(s, add_special_tokens=True).ids for s in S]
    text = [t.decode(i, skip_special_tokens=True) for i in ids]
    # decoded text only where it is not the string itself
    out.append(dict(name=name, tokenizer=d, vocab_size=t.get_vocab_size(), ids=ids, decoded={str(k): x for k, x in enumerate(text) if x != S[k]}))
    print(name, t.get_vocab_size(), sum(map(len, ids)))
def spm(name, normalizer, pre, fallback=True, fuse=True, unk="<unk>", decoder=UNSPM, missing=(), added=(), normed=False, **k):
    t = Tokenizer(M.BPE(unk_token=unk, fuse_unk=fuse, byte_fallback=fallback))
    if normalizer: t.normalizer = normalizer
    t.pre_tokenizer = pre or P.Metaspace()
    t.train_from_iterator(text, T.BpeTrainer(vocab_size=420 if fallback else 200, limit_alphabet=60, show_progress=False, max_token_length=12,
        special_tokens=["<unk>", "<s>", "</s>"] + ["<0x%02X>" % b for b in range(256) if fallback and b not in missing]))
    d = json.loads(t.to_str())
    d["added_tokens"] = [dict(id=i, content=c, single_word=False, lstrip=False, rstrip=False, normalized=normed, special=True) for i, c in enumerate(("<unk>", "<s>", "</s>"))]
    if pre is None: d["pre_tokenizer"] = None
    d["post_processor"], d["decoder"] = TEMPLATE, decoder
    finish(name, d, added, **k)
def byte_level(name, normalizer, pre, added=(), ignore=False):
    t = Tokenizer(M.BPE(ignore_merges=ignore))
    if normalizer: t.normalizer = normalizer
    t.pre_tokenizer = pre
    t.train_from_iterator(text, T.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=P.ByteLevel.alphabet(), special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"]))
    d = json.loads(t.to_str())
    d["decoder"] = dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True)
    finish(name, d, added)
legacy = N.Sequence([N.Prepend("\u2581"), N.Replace(" ", "\u2581")])
BL = lambda prefix=False, regex=True: P.ByteLevel(add_prefix_space=prefix, use_regex=regex)
llama3 = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
spm("llama-2", legacy, None, old_merges=True)
spm("llama-2, tokens normalized", legacy, None, normed=True)
spm("metaspace first", None, P.Metaspace(prepend_scheme="first", split=False), added=ADDED)
spm("metaspace always, split", None, P.Metaspace(prepend_scheme="always", split=True), decoder=META("always"))
spm("metaspace never", N.NFC(), P.Metaspace(prepend_scheme="never", split=True), decoder=META("never"))
spm("unknowns fused", legacy, None, fallback=False)
spm("unknowns one by one", legacy, None, fallback=False, fuse=False)
spm("no unknown token", legacy, None, fallback=False, unk=None)
spm("bytes missing", legacy, None, missing=(0xC3, 0xE4, 0xF0, 0x0A), added=ADDED)
spm("strip, NFKC, white space, first", N.Sequence([N.Strip(True, False), N.NFKC(), N.Replace("e", "")]), P.Sequence([P.WhitespaceSplit(), P.Metaspace(prepend_scheme="first")]), decoder=dict(type="Sequence", decoders=[dict(type="ByteFallback"), META("never")]))
spm("NFD, upper case, first", N.Sequence([N.NFD(), N.Replace(Regex(r"\s+"), " ")]), P.Sequence([P.Split(Regex(r"\p{Lu}"), "merged_with_next"), P.Metaspace(prepend_scheme="first")]), added=ADDED)
byte_level("gpt-2", None, BL(True), added=ADDED)
byte_level("llama-3", None, P.Sequence([P.Split(Regex(llama3), "isolated"), BL(False, False)]), ignore=True)
byte_level("qwen2", N.NFC(), P.Sequence([P.Split(Regex(llama3.replace("{1,3}", "")), "isolated"), BL(False, False)]), added=ADDED)
byte_level("digits", None, P.Sequence([P.Digits(True), BL()]))
byte_level("falcon", N.NFKD(), P.Sequence([P.Punctuation("contiguous"), BL(), P.Digits(False), P.Split(Regex("[0-9][0-9][0-9]"), "isolated")]))
byte_level("words", None, P.Sequence([P.Whitespace(), BL(True, False)]))
for b in "removed", "merged_with_previous", "merged_with_next", "contiguous":
    byte_level(b, None, P.Sequence([P.Split(Regex(r"[\s\d]|ab|x*"), b, invert=b == "contiguous"), P.Split(" ", b), BL(False, False)]))
json.dump(dict(source=f"tokenizers {tokenizers.__version__}", how="make_tok_small.py: ids of encode(s, add_special_tokens=True); decoded = decode(ids, skip_special_tokens=True) where it differs from the string", strings=S, sets=out), open(sys.argv[1], "w"), separators=(",", ":"))
