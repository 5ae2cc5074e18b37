/* The kernels of a qbench record with --kernels against what the machine gives: a point an op and phase, operations per
 * byte across, operations a second up, under the slope of the read bandwidth and the peaks of the arithmetic used. */
#ifndef QLAB_OUTPUT_ROOFLINE_H
#define QLAB_OUTPUT_ROOFLINE_H

#include "base/json.h"

/* The gnuplot script (free it) for plot_draw; *height in pixels. NULL: the record has no kernels, or none that compute,
 * or nothing to hold them against. name: what is in the title. */
char *roofline_script(const json_t *bench, const char *name, int *height);

#endif
