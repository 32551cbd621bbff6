# How much code speed may cost, for the Release configuration. A wheel holds it all, so that the rule
# is -O2: -O3 is for what runs in a wrapped call and for what looks at each value of a tensor, -Os for
# what runs a few times a recording, is the drain thread's once a step, or is little beside what it
# calls: the driver, or a pass over the values of a tensor. Link-time optimisation keeps each
# function's own; where the hot path shares inline functions with a file, it may get their small
# copies, as instruction counts show.

if(CMAKE_CXX_FLAGS_RELEASE STREQUAL "-O3 -DNDEBUG")
  set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")
endif()

set_source_files_properties(
  csrc/bindings/bound_call.cpp
  csrc/bindings/device_calls.cpp
  csrc/bindings/last_cache.cpp
  csrc/bindings/plain_decode.cpp
  csrc/bindings/root_call.cpp
  csrc/bindings/sampled_forward.cpp
  csrc/bindings/scope.cpp
  csrc/bindings/span_call.cpp
  csrc/bindings/step_call.cpp
  csrc/bindings/step_forward.cpp
  csrc/bindings/step_inputs.cpp
  csrc/bindings/step_plan.cpp
  csrc/bindings/step_region.cpp
  csrc/bindings/step_rows.cpp
  csrc/bindings/weak_method.cpp
  csrc/core/clock.cpp
  csrc/core/exp_histogram.cpp
  csrc/core/logit_kernels_portable.cpp
  csrc/core/slot_counts.cpp
  csrc/core/slot_kernels_avx2.cpp
  csrc/core/slot_kernels_avx512.cpp
  csrc/core/slot_kernels_portable.cpp
  csrc/core/tensor_stats.cpp
  csrc/core/tensor_stats_scalar.cpp
  csrc/core/thread_buffer.cpp
  csrc/cuda/event_lane.cpp
  PROPERTIES COMPILE_OPTIONS $<$<CONFIG:Release>:-O3>)

set_source_files_properties(
  csrc/bindings/bind_build.cpp
  csrc/bindings/bind_clock.cpp
  csrc/bindings/bind_export.cpp
  csrc/bindings/bind_gpu.cpp
  csrc/bindings/bind_histogram.cpp
  csrc/bindings/bind_recorder.cpp
  csrc/bindings/bind_sampling.cpp
  csrc/bindings/bind_spool.cpp
  csrc/bindings/bind_totals.cpp
  csrc/bindings/bind_triggers.cpp
  csrc/bindings/current_stream.cpp
  csrc/bindings/declared_logits.cpp
  csrc/bindings/dlpack_tensor.cpp
  csrc/bindings/gpu_logit_reader.cpp
  csrc/bindings/host_tensor.cpp
  csrc/bindings/logit_reader.cpp
  csrc/bindings/logit_rows.cpp
  csrc/bindings/method_call.cpp
  csrc/bindings/module.cpp
  csrc/bindings/named_values.cpp
  csrc/bindings/observation_columns.cpp
  csrc/bindings/request_numbers.cpp
  csrc/bindings/root_search.cpp
  csrc/bindings/snapshot_columns.cpp
  csrc/bindings/scope_links.cpp
  csrc/bindings/tensor_arguments.cpp
  csrc/bindings/tensor_reading.cpp
  csrc/core/aggregates.cpp
  csrc/core/clock_calibrator.cpp
  csrc/core/clock_fit.cpp
  csrc/core/clock_map.cpp
  csrc/core/clock_samples.cpp
  csrc/core/collector_sampling.cpp
  csrc/core/committed_logits.cpp
  csrc/core/exp_boundaries.cpp
  csrc/core/generation_times.cpp
  csrc/core/logit_stats.cpp
  csrc/core/mapped_file.cpp
  csrc/core/observation_intake.cpp
  csrc/core/observation_store.cpp
  csrc/core/packed_buckets.cpp
  csrc/core/recorder.cpp
  csrc/core/recorder_devices.cpp
  csrc/core/recorder_observations.cpp
  csrc/core/recorder_registry.cpp
  csrc/core/recorder_snapshot.cpp
  csrc/core/recorder_spool.cpp
  csrc/core/recorder_triggers.cpp
  csrc/core/request_tracker.cpp
  csrc/core/sampler_report.cpp
  csrc/core/sampler_seen.cpp
  csrc/core/spool.cpp
  csrc/core/spool_journal.cpp
  csrc/core/spool_segments.cpp
  csrc/core/spooled_observation.cpp
  csrc/core/step_triggers.cpp
  csrc/core/string_table.cpp
  csrc/core/tensor_view.cpp
  csrc/core/trace_store.cpp
  csrc/core/tracks.cpp
  csrc/cuda/device_clock.cpp
  csrc/cuda/driver_api.cpp
  csrc/cuda/event_pool.cpp
  csrc/cuda/event_timer.cpp
  csrc/cuda/gpu_histogram.cpp
  csrc/cuda/gpu_logits.cpp
  csrc/cuda/gpu_observer.cpp
  csrc/cuda/gpu_observer_graphs.cpp
  csrc/cuda/gpu_stats.cpp
  csrc/cuda/graph_life.cpp
  csrc/cuda/graph_stamps.cpp
  csrc/cuda/graph_switch.cpp
  csrc/cuda/kernel_image.cpp
  csrc/cuda/kernel_memory.cpp
  csrc/cuda/logit_device.cpp
  csrc/cuda/opened_context.cpp
  csrc/cuda/results_under_way.cpp
  csrc/cuda/stamp_clock.cpp
  csrc/cuda/stamp_reader.cpp
  csrc/cuda/stats_device.cpp
  csrc/cuda/stats_plan.cpp
  csrc/cuda/stream_capture.cpp
  csrc/cuda/tagged_reader.cpp
  csrc/export/chrome_trace.cpp
  csrc/export/counter_events.cpp
  csrc/export/lanes.cpp
  csrc/export/sink.cpp
  csrc/export/step_events.cpp
  csrc/export/trace_rows.cpp
  PROPERTIES COMPILE_OPTIONS $<$<CONFIG:Release>:-Os>)
