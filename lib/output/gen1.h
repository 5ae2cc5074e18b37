/* The commands `qreport sens`, `mix` and `speed`, from the command line to the record. */
#ifndef QLAB_OUTPUT_GEN1_H
#define QLAB_OUTPUT_GEN1_H

#include "base/record.h"

/* Begins the record with the command line as it was given. */
typedef void gen1_begin(struct record *r, const struct tool *t, int argc, char **argv);

/* argv[0] is the command's name; version: the tool's results version. They return the exit status or die. */
int gen1_sens(int argc, char **argv, int version, gen1_begin *begin);
int gen1_mix(int argc, char **argv, int version, gen1_begin *begin);
int gen1_speed(int argc, char **argv, int version, gen1_begin *begin);

#endif
