// What each step reads of the process, side by side: beside a model's work each line of memory is a
// wait, and alone each of these variables would be on one of its own. Linkers gather what has the
// name of a section that is not one of theirs.
#pragma once

#if defined(__GNUC__) && defined(__ELF__)
#define PERTOKEN_STEP_DATA [[gnu::section("pertoken_step")]]
#else
#define PERTOKEN_STEP_DATA
#endif
