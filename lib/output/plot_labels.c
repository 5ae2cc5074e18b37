/* Where labels go: each tries places on rings around its point and takes the cheapest, given where all others are;
 * repeated until nothing moves. Costs are in pixels of distance. */
#include "output/plot.h"

#include <math.h>
#include <string.h>

#define POINT_R 6.0 /* a point's mark */

struct box {
    double x0, y0, x1, y1;
};

static double overlap(struct box a, struct box b)
{
    double w = fmin(a.x1, b.x1) - fmax(a.x0, b.x0), h = fmin(a.y1, b.y1) - fmax(a.y0, b.y0);
    return w > 0 && h > 0 ? w * h : 0;
}

static struct box grown(struct box b, double m) { return (struct box){b.x0 - m, b.y0 - m, b.x1 + m, b.y1 + m}; }
static struct box label_box(const struct plot_label *l)
{
    return (struct box){l->lx, l->ly, l->lx + l->w, l->ly + l->h};
}

/* Liang-Barsky: does the segment pass through the box? */
static bool hits(double x0, double y0, double x1, double y1, struct box b)
{
    double dx = x1 - x0, dy = y1 - y0, t0 = 0, t1 = 1;
    double p[4] = {-dx, dx, -dy, dy}, q[4] = {x0 - b.x0, b.x1 - x0, y0 - b.y0, b.y1 - y0};
    for (int i = 0; i < 4; i++) {
        if (p[i] == 0) {
            if (q[i] < 0) return false;
            continue;
        }
        double t = q[i] / p[i];
        if (p[i] < 0) t0 = fmax(t0, t);
        else t1 = fmin(t1, t);
    }
    return t0 < t1;
}

static bool cross(const struct plot_label *a, const struct plot_label *b)
{
    double ux = a->ax - a->x, uy = a->ay - a->y, vx = b->ax - b->x, vy = b->ay - b->y, d = ux * vy - uy * vx;
    if (fabs(d) < 1e-9) return false;
    double wx = b->x - a->x, wy = b->y - a->y, s = (wx * vy - wy * vx) / d, t = (wx * uy - wy * ux) / d;
    return s > 0 && s < 1 && t > 0 && t < 1;
}

/* Put label l at distance r in direction (c, s): beside the point its nearer edge is there, above and below its middle;
 * in between the anchor slides along the edge. */
static void put(struct plot_label *l, double r, double c, double s)
{
    double px = l->x + r * c, py = l->y + r * s;
    double fx = fabs(c) > 0.35 ? (c > 0 ? 0 : 1) : 0.5;
    l->lx = px - fx * l->w;
    l->ly = fx == 0.5 ? (s > 0 ? py : py - l->h) : py - l->h / 2;
    l->ax = px;
    l->ay = py;
    l->leader = r > 2.2 * POINT_R;
}

static double cost(const struct plot_label *l, size_t n, size_t i, double r, double c, struct box area,
                   struct plot_line line)
{
    const struct plot_label *me = &l[i];
    struct box b = label_box(me);
    double sum = r + (c > 0.9 ? 0 : c < -0.9 ? 3 : 5);
    if (b.x0 < area.x0 || b.x1 > area.x1 || b.y0 < area.y0 || b.y1 > area.y1) sum += 100000;
    if (isfinite(line.y0) && hits(line.x0, line.y0, line.x1, line.y1, grown(b, 1))) sum += 90;
    for (size_t k = 0; k < n; k++) {
        const struct plot_label *o = &l[k];
        struct box point = {o->x - POINT_R, o->y - POINT_R, o->x + POINT_R, o->y + POINT_R};
        if (overlap(grown(b, 1), point) > 0) sum += 5000;
        if (hits(o->x, o->bar_top, o->x, o->bar_bottom + 1e-6, b)) sum += 220;
        if (k == i) continue;
        if (me->leader && hits(me->x, me->y, me->ax, me->ay, point)) sum += 300;
        /* beside another's mark it would be taken for that one's */
        if (overlap(grown(b, 7), point) > 0) sum += me->leader ? 50 : 10;
        struct box ob = label_box(o);
        double over = overlap(grown(b, 2), ob);
        if (over > 0) sum += 20000 + over;
        if (me->leader && hits(me->x, me->y, me->ax, me->ay, grown(ob, 1))) sum += 250;
        if (o->leader && hits(o->x, o->y, o->ax, o->ay, grown(b, 1))) sum += 250;
        if (me->leader && o->leader && cross(me, o)) sum += 120;
    }
    return sum;
}

void plot_place_labels(struct plot_label *l, size_t n, double left, double top, double right, double bottom,
                       struct plot_line line)
{
    static const double radii[] = {9, 14, 20, 28, 36, 46, 58, 72, 88, 106, 126, 150, 176, 204, 240};
    const int n_radii = sizeof radii / sizeof *radii, n_dirs = 24;
    /* so many labels that it would take long are crowded anyway */
    const int max_sweeps = n <= 13 ? 40 : n < 120 ? (int)(8000 / (n * n)) + 1 : 1;
    struct box area = {left, top, right, bottom};
    for (size_t i = 0; i < n; i++) put(&l[i], radii[0], 1, 0);
    bool moved = true;
    for (int sweep = 0; moved && sweep < max_sweeps; sweep++) {
        moved = false;
        for (size_t i = 0; i < n; i++) {
            struct plot_label was = l[i], best = l[i];
            double least = INFINITY;
            for (int a = 0; a < n_radii; a++)
                for (int d = 0; d < n_dirs; d++) {
                    double phi = 2 * M_PI * d / n_dirs, c = cos(phi), s = sin(phi);
                    put(&l[i], radii[a], c, s);
                    double v = cost(l, n, i, radii[a], c, area, line);
                    if (v < least - 1e-9) {
                        least = v;
                        best = l[i];
                    }
                }
            l[i] = best;
            if (memcmp(&was.lx, &best.lx, sizeof was.lx) || memcmp(&was.ly, &best.ly, sizeof was.ly)) moved = true;
        }
    }
}
