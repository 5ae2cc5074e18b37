/* tok_ids TOKENIZER.json|MODEL [special] < STRINGS > IDS: what tests/golden/make/fuzz_tok.py compares with the real library.
 * STRINGS: per string a little-endian u32 length and its bytes. IDS: per string u32 count, ids as i32, then the decoded
 * text as u32 length and bytes. */
#include "base/json.h"
#include "base/msg.h"
#include "views/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    msg_init("tok_ids");
    if (argc < 2) die_usage("TOKENIZER.json or MODEL is missing");
    struct err e;
    struct tokenizer *t = NULL;
    const char *ext = strrchr(argv[1], '.');
    if (ext && !strcmp(ext, ".json")) {
        json_t *json = json_read(argv[1], (size_t)1 << 30, &e);
        if (json) t = tokenizer_new(json, NULL, argv[1], &e);
        json_decref(json);
    } else {
        t = tokenizer_of_model(argv[1], &e);
    }
    if (!t) die("%s", e.msg);
    bool special = argc > 2 && !strcmp(argv[2], "special");
    uint32_t n;
    while (fread(&n, 4, 1, stdin) == 1) {
        char *s = malloc(n + 1);
        if (!s || fread(s, 1, n, stdin) != n) die("stdin: truncated");
        int32_t *ids;
        size_t k, len;
        if (tokenizer_encode(t, s, n, special, &ids, &k, &e)) die("%s", e.msg);
        char *text = tokenizer_decode(t, ids, k, false, &len);
        uint32_t head = (uint32_t)k, tail = (uint32_t)len;
        fwrite(&head, 4, 1, stdout);
        fwrite(ids, 4, k, stdout);
        fwrite(&tail, 4, 1, stdout);
        fwrite(text, 1, len, stdout);
        free(text);
        free(ids);
        free(s);
    }
    tokenizer_free(t);
    return 0;
}
