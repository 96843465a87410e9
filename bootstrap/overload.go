package bootstrap

const heapMonitor = "envoy.resource_monitors.fixed_heap"

const (
	mebibyte = 1 << 20

	// besideHeap is what a sidecar's memory holds besides Envoy's heap: the
	// agent, stacks, and what the kernel charges to the container.
	besideHeap = 40 * mebibyte

	// perConnection is roughly what an idle connection with TLS takes of the
	// heap, both its sides together.
	perConnection = 32 << 10
)

// overloadManager keeps Envoy inside the container's memory limit: better to
// turn callers away than to be killed with all connections.
func overloadManager(limit int64) object {
	// A small container keeps half for the heap, even where that is tight: with
	// nothing, Envoy would turn everybody away.
	heap := max(limit-besideHeap, limit/2)
	return object{
		"refresh_interval": "0.25s",
		"resource_monitors": list{
			object{
				"name": heapMonitor,
				"typed_config": typed("envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
					object{"max_heap_size_bytes": heap}),
			},
			object{
				"name": "envoy.resource_monitors.global_downstream_max_connections",
				"typed_config": typed("envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
					object{"max_active_downstream_connections": max(heap/perConnection, 1)}),
			},
		},
		"actions": list{
			onHeap("envoy.overload_actions.shrink_heap", 0.9),
			onHeap("envoy.overload_actions.disable_http_keepalive", 0.93),
			onHeap("envoy.overload_actions.stop_accepting_requests", 0.96),
			onHeap("envoy.overload_actions.stop_accepting_connections", 0.98),
		},
	}
}

func onHeap(action string, share float64) object {
	return object{
		"name": action,
		"triggers": list{object{
			"name":      heapMonitor,
			"threshold": object{"value": share},
		}},
	}
}
