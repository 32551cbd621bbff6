// Counters of processes whose values the caller has computed. Used by the trace writer alone.
#pragma once

#include "export/chrome_trace.h"
#include "export/sink.h"

namespace pertoken::exporting {

void write_counters(const ChromeTrace& trace, const CounterColumns& columns, OutputBuffer& out);

}  // namespace pertoken::exporting
