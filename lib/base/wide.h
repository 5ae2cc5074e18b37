/* WIDE before a function: compiled for wider vectors too, and the right one chosen when the program starts. There is no
 * multiply-add and no other order of sums in either: the same results. */
#ifndef QLAB_BASE_WIDE_H
#define QLAB_BASE_WIDE_H

#if defined __x86_64__ && defined __gnu_linux__ && !defined __SANITIZE_ADDRESS__ && \
    !defined __SANITIZE_THREAD__ && !defined __clang__
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define WIDE
#endif

#endif
