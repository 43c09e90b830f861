// One instruction set's copy of everything vectorized; kWidth is the bytes of its registers.
#include "lanes.h"

#include "groups.h"

#include "compensated.h"

#include "factor.h"

static_assert(kGroupRows == kLanes && kCompensatedRows == kLanes * kVecs, "tiles of problem.h");

static size_t groups_scratch(const Problem &) { return sizeof(GroupScratch); }
static size_t compensated_scratch(const Problem &p) {
    return sizeof(TileScratch) +
           kVecs * ((sizeof(F) + sizeof(I)) * (size_t)p.k + sizeof(Params) * (size_t)p.groups());
}
