/* The bytes as a tokenizer.json; if it loads, a few texts through it and back. */
#include "base/json.h"
#include "views/tokenizer.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const texts[] = {"", " ", "ab  ab\n\n12 345 don't <s>",
                                        "caf\xC3\xA9 e\xCC\x81\xCC\xA3 \xE4\xBD\xA0\xF0\x9F\x98\x80",
                                        "\xFF\xE2\x82 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\t \r\n\xE2\x96\x81x"};
    struct err e;
    json_t *json = json_parse("fuzz", (const char *)data, size, &e);
    struct tokenizer *t = json ? tokenizer_new(json, json, "fuzz", &e) : NULL;
    json_decref(json);
    for (size_t i = 0; t && i < sizeof texts / sizeof texts[0]; i++) {
        int32_t *ids;
        size_t n, back;
        if (tokenizer_encode(t, texts[i], strlen(texts[i]), true, &ids, &n, &e)) continue;
        free(tokenizer_decode(t, ids, n, i & 1, &back));
        free(ids);
    }
    if (t && !tokenizer_type(t)) abort();
    tokenizer_free(t);
    return 0;
}
