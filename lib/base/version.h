#ifndef QLAB_BASE_VERSION_H
#define QLAB_BASE_VERSION_H

#define QLAB_VERSION "0.1.0"
/* Set by the build: the commit ("a1b2c3d", "-dirty" when the tree differs), or "unknown". */
const char *version_git(void);
/* What --version adds about this build, a line: "built without CUDA". */
const char *version_build_note(void);

#endif
