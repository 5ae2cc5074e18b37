/* The only object that depends on the commit: rebuilt when it changes, see the Makefile. */
#include "base/version.h"

#ifndef QLAB_GIT
#define QLAB_GIT "unknown"
#endif

const char *version_git(void) { return QLAB_GIT; }

const char *version_build_note(void)
{
#ifdef QLAB_CUDA
    return "built with CUDA";
#else
    return "built without CUDA";
#endif
}
