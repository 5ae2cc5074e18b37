/* Models by name from the Hugging Face hub. */
#ifndef QLAB_VIEWS_HUB_H
#define QLAB_VIEWS_HUB_H

#include "base/err.h"

#include <stdbool.h>

/* True for "hf:…". */
bool hub_is_spec(const char *spec);

/* Download the checkpoint "hf:OWNER/NAME[@REVISION]" (a branch, tag or commit; default main) into a new folder
 * dest_dir: config.json, generation_config.json, tokenizer.json, tokenizer_config.json, and model.safetensors or the
 * index with its shards. What has come is kept in DEST_DIR.download until all is there, so that the same call goes on
 * after an interruption; then the folder appears under its name, as of dir_out (base/file.h). Lengths and the digests
 * the hub states (sha256 of large files, git's sha1 of small ones) are verified: a file that differs is removed, and
 * it is an error. Dropped connections are taken up again.
 * Environment: HF_TOKEN (sent to the hub alone), HF_ENDPOINT (default https://huggingface.co). */
int hub_fetch(const char *spec, const char *dest_dir, struct err *e);

#endif
