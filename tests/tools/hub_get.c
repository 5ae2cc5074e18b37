/* hub_fetch alone, for tests/cli/hub.bats: hub_get SPEC DIR */
#include "base/msg.h"
#include "views/hub.h"

int main(int argc, char **argv)
{
    struct err e;
    msg_init("hub_get");
    if (argc != 3) die_usage("SPEC and DIR were expected");
    if (hub_fetch(argv[1], argv[2], &e)) die("%s", e.msg);
    return 0;
}
