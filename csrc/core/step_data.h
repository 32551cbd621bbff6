// What each step reads of the process, side by side: beside a model's work each line of memory is a
// wait, and alone each of these variables would be on one of its own.
#pragma once

#if defined(__GNUC__) && defined(__ELF__)
#define PERTOKEN_STEP_DATA [[gnu::section(".data.pertoken_step")]]
#else
#define PERTOKEN_STEP_DATA
#endif
