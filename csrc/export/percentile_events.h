// The percentiles of observed sites, as counters of their process. Used by the trace writer alone.
#pragma once

#include "export/chrome_trace.h"
#include "export/sink.h"

namespace pertoken::exporting {

// One counter a site, with the series p1, p50 and p99; a value that is not finite is left out.
void write_percentiles(const ChromeTrace& trace, OutputBuffer& out);

}  // namespace pertoken::exporting
