/* Texts: files as they are, Hugging Face rows, caps, invalid UTF-8. */
#include "base/hash.h"
#include "golden.h"
#include "views/corpus.h"
#include "views/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct corpus load(const char *text, size_t n, enum text_form form, int64_t max_chars, int64_t *bad)
{
    struct err e;
    struct corpus c;
    const char *path = test_tmp("text.txt");
    test_write(path, text, n);
    if (corpus_load(&c, path, form, max_chars, bad, &e)) fail_msg("%s", e.msg);
    assert_int_equal(strlen(c.text) <= c.n_bytes, 1);
    assert_int_equal(c.text[c.n_bytes], 0);
    assert_int_equal(c.n_chars, utf8_count(c.text, c.n_bytes));
    return c;
}

static void check(const char *text, enum text_form form, int64_t max_chars, const char *want)
{
    struct corpus c = load(text, strlen(text), form, max_chars, NULL);
    assert_string_equal(c.text, want);
    assert_int_equal(c.n_bytes, strlen(want));
    corpus_free(&c);
}

static void forms(void **state)
{
    (void)state;
    check("", TEXT_FILE, 0, "");
    check("", TEXT_HF_ROWS, 0, "");
    check(" \n = A = \n", TEXT_FILE, 0, " \n = A = \n");
    check(" \n = A = \n", TEXT_HF_ROWS, 0, "\n\n = A = \n");
    check("a\nb", TEXT_HF_ROWS, 0, "a\n\n\nb");
    check("a\n\n\nb\n", TEXT_HF_ROWS, 0, "a\n\n\n\n\n\n\nb\n");
    check("\n", TEXT_HF_ROWS, 0, "");
    check("a\n \xC2\xA0\xE3\x80\x80\x1C\r\n", TEXT_HF_ROWS, 0, "a\n\n\n"); /* blank for Python's strip */
    check("a\n\xE2\x80\x8B\n", TEXT_HF_ROWS, 0, "a\n\n\n\xE2\x80\x8B\n");  /* U+200B is not */
    check("h\xC3\xA9\xE4\xBD\xA0\xF0\x9F\x98\x80x", TEXT_FILE, 4, "h\xC3\xA9\xE4\xBD\xA0\xF0\x9F\x98\x80");
    check("h\xC3\xA9", TEXT_FILE, 2, "h\xC3\xA9");
    check("ab", TEXT_FILE, 9, "ab");
    check("\n\nab", TEXT_HF_ROWS, 5, "\n\n\n\na");
}

static void invalid(void **state)
{
    (void)state;
    int64_t bad;
    struct corpus c = load("a\xFF\xE2\x82z\0\xC3", 7, TEXT_FILE, 0, &bad);
    assert_int_equal(bad, 3);
    assert_int_equal(c.n_chars, 6);
    assert_int_equal(c.n_bytes, 12);
    assert_memory_equal(c.text, "a\xEF\xBF\xBD\xEF\xBF\xBDz\0\xEF\xBF\xBD", 12);
    corpus_free(&c);
    c = load("ok", 2, TEXT_FILE, 0, &bad);
    assert_int_equal(bad, 0);
    corpus_free(&c);
}

static void missing(void **state)
{
    (void)state;
    struct err e;
    struct corpus c;
    assert_int_equal(corpus_load(&c, test_tmp("nothing.txt"), TEXT_FILE, 0, NULL, &e), -1);
    assert_non_null(strstr(e.msg, "nothing.txt: "));
    assert_null(c.text);
}

/* The digests of the reference's notes. */
static void wikitext(void **state)
{
    (void)state;
    char *path = test_shared("text/wiki.test.raw", "WikiText-2 as rows");
    if (!path) skip();
    struct err e;
    struct corpus c;
    char hex[65];
    assert_int_equal(corpus_load(&c, path, TEXT_HF_ROWS, 0, NULL, &e), 0);
    assert_int_equal(c.n_chars, 1294336);
    assert_int_equal(c.n_bytes, 1296370);
    sha256_hex(c.text, c.n_bytes, hex);
    hex[8] = 0;
    assert_string_equal(hex, "696cca6b");
    corpus_free(&c);
    assert_int_equal(corpus_load(&c, path, TEXT_HF_ROWS, 2000, NULL, &e), 0);
    assert_int_equal(c.n_bytes, 2002);
    sha256_hex(c.text, c.n_bytes, hex);
    hex[8] = 0;
    assert_string_equal(hex, "9d9f16a1");
    corpus_free(&c);
    assert_int_equal(corpus_load(&c, path, TEXT_FILE, 0, NULL, &e), 0);
    assert_int_equal(c.n_bytes, 1290590);
    corpus_free(&c);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(forms), cmocka_unit_test(invalid), cmocka_unit_test(missing),
                                       cmocka_unit_test(wikitext)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
