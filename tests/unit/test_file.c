/* Files that are not what they seem: pipes under ordinary names, maps whose file is cut short while it is read. */
#include "base/file.h"
#include "base/msg.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[] = "/tmp/qlab-file-XXXXXX";

static int setup(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return path_remove_tree(dir, NULL);
}

static void test_pipe_is_refused(void **state)
{
    (void)state;
    struct err e;
    struct file_map m;
    char *path = path_join(dir, "pipe"), *buf;
    size_t n;
    assert_int_equal(mkfifo(path, 0600), 0);
    alarm(20); /* waiting for a writer would be for ever */
    assert_int_equal(file_read(path, 100, &buf, &n, &e), -1);
    assert_non_null(strstr(e.msg, "pipe: not a regular file"));
    assert_int_equal(file_map_open(&m, path, &e), -1);
    assert_non_null(strstr(e.msg, "pipe: not a regular file"));
    alarm(0);
    free(path);
}

/* A pipe the shell hands over is read to its end, also when its writer is slow. */
static void test_given_pipe_is_read(void **state)
{
    (void)state;
    struct err e;
    char name[64], *buf;
    size_t n;
    int p[2];
    assert_int_equal(pipe(p), 0);
    pid_t pid = fork();
    if (pid == 0) {
        usleep(50000);
        bool ok = write(p[1], "late", 4) == 4;
        usleep(50000);
        _exit(!(ok && write(p[1], "r", 1) == 1));
    }
    close(p[1]);
    snprintf(name, sizeof name, "/dev/fd/%d", p[0]);
    assert_int_equal(file_read(name, 100, &buf, &n, &e), 0);
    assert_string_equal(buf, "later");
    assert_int_equal(n, 5);
    free(buf);
    close(p[0]);
    waitpid(pid, NULL, 0);
}

/* Runs read_map in a child; its exit status, and what it said on stderr in `said`. */
static int child_status(const char *path, bool cut, char said[1200])
{
    int p[2];
    assert_int_equal(pipe(p), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct file_map m;
        struct file_out out;
        dup2(p[1], 2);
        msg_init("tool");
        char *left = path_join(dir, "left");
        if (file_map_open(&m, path, NULL) || file_out_open(&out, left, NULL)) _exit(3);
        if (cut && truncate(path, 4096)) _exit(4);
        volatile uint8_t last = m.data[m.size - 1];
        (void)last;
        file_map_close(&m);
        file_out_abort(&out);
        free(left);
        _exit(0);
    }
    close(p[1]);
    size_t n = 0;
    for (ssize_t k; (k = read(p[0], said + n, 1199 - n)) > 0;) n += (size_t)k;
    said[n] = 0;
    close(p[0]);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void test_map_cut_short(void **state)
{
    (void)state;
    char said[1200], *path = path_join(dir, "model\n.safetensors"), *sub = path_join(dir, "left"), bytes[40000] = {1};
    assert_int_equal(file_write(path, bytes, sizeof bytes, NULL), 0);
    assert_int_equal(child_status(path, false, said), 0);
    assert_string_equal(said, "");
    int status = child_status(path, true, said);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 1);
    char *want = path_join(dir, "model?.safetensors: cannot be read to its end any more");
    assert_int_equal(strncmp(said, "tool: ", 6), 0);
    assert_int_equal(strncmp(said + 6, want, strlen(want)), 0);
    assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1); /* one line */
    /* nothing unfinished is left: the folder holds this file and the pipe of the test before */
    assert_false(path_exists(sub));
    struct err e;
    assert_int_equal(unlink(path), 0);
    char *pipe_path = path_join(dir, "pipe");
    unlink(pipe_path);
    assert_int_equal(rmdir(dir), 0);
    assert_int_equal(path_make_dirs(dir, &e), 0);
    free(pipe_path);
    free(want);
    free(sub);
    free(path);
}

static void test_paths_of_maps(void **state)
{
    (void)state;
    struct file_map a, b;
    struct err e;
    char *pa = path_join(dir, "a"), *pb = path_join(dir, "b");
    assert_int_equal(file_write(pa, "abc", 3, &e), 0);
    assert_int_equal(file_write(pb, "defg", 4, &e), 0);
    assert_int_equal(file_map_open(&a, pa, &e), 0);
    assert_int_equal(file_map_open(&b, pb, &e), 0);
    assert_string_equal(file_map_path(a.data + 1), pa);
    assert_string_equal(file_map_path(b.data + 3), pb);
    assert_null(file_map_path(pa));
    const uint8_t *was = a.data;
    file_map_close(&a);
    assert_null(file_map_path(was));
    assert_string_equal(file_map_path(b.data), pb);
    file_map_close(&b);
    free(pa);
    free(pb);
}

static char *seen;
static size_t n_seen;
static bool seen_final;

static void look(const char *tmp)
{
    struct err e;
    char *final = path_join(dir, "out");
    if (file_read(tmp, 1 << 20, &seen, &n_seen, &e)) seen = NULL;
    seen_final = path_exists(final);
    free(final);
}

/* What runs beside the sync sees the whole file, before it has its name; nothing runs for a file that could not be written. */
static void test_beside(void **state)
{
    (void)state;
    struct err e;
    struct file_out o;
    char *path = path_join(dir, "out"), bytes[10000];
    memset(bytes, 'x', sizeof bytes);
    assert_int_equal(file_out_open(&o, path, &e), 0);
    assert_null(o.beside);
    o.beside = look;
    assert_int_equal(file_out_write(&o, bytes, sizeof bytes, &e), 0);
    assert_int_equal(file_out_close(&o, &e), 0);
    assert_non_null(seen);
    assert_int_equal(n_seen, sizeof bytes);
    assert_memory_equal(seen, bytes, sizeof bytes);
    assert_false(seen_final);
    assert_true(path_exists(path));
    free(seen);
    seen = NULL;
    assert_int_equal(file_out_open(&o, path, &e), 0);
    o.beside = look;
    FILE *full = fopen("/dev/full", "wb");
    assert_non_null(full);
    fclose(o.f);
    o.f = full;
    assert_int_equal(file_out_write(&o, bytes, 100, &e), 0); /* buffered: the flush fails */
    assert_int_equal(file_out_close(&o, &e), -1);
    assert_null(seen);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pipe_is_refused),
        cmocka_unit_test(test_given_pipe_is_read),
        cmocka_unit_test(test_map_cut_short),
        cmocka_unit_test(test_paths_of_maps),
        cmocka_unit_test(test_beside),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
