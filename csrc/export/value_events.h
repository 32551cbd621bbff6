// What was observed of values, as counters of their process: percentiles of sites, and what logits
// said. A value that is not finite is left out. Used by the trace writer alone.
#pragma once

#include "export/chrome_trace.h"
#include "export/sink.h"

namespace pertoken::exporting {

// One counter a site, with the series p1, p50 and p99.
void write_percentiles(const ChromeTrace& trace, OutputBuffer& out);

// One counter a process, with the series top1_prob, margin, entropy and logprob.
void write_confidence(const ChromeTrace& trace, OutputBuffer& out);

}  // namespace pertoken::exporting
